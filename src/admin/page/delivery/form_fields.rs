//! The fields that several forms of the page have.

use maud::{Markup, html};

use super::look::DeliveryPage;
use crate::admin::page::layout::proof;
use crate::admin::page::visitor::Visitor;
use crate::event::REASON_BYTES_MAX;

/// Renders the hidden fields of a form on the page: the proof, and the filter to return to.
pub(super) fn hidden(page: &DeliveryPage, visitor: &Visitor) -> Markup {
    html! {
        (proof(visitor))
        @for (name, value) in [("sink", &page.query.sink), ("kind", &page.query.kind)] {
            @if !value.is_empty() { input type="hidden" name=(name) value=(value); }
        }
    }
}

/// Renders the field of a reason that a change needs.
pub(super) fn reason_field(id: &str) -> Markup {
    html! {
        div.field {
            label for=(id) { "Reason" }
            input id=(id) name="reason" required maxlength=(REASON_BYTES_MAX) autocomplete="off";
        }
    }
}
