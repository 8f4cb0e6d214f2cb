//! The visitor of a page.

use crate::admin::auth::Operator;
use crate::admin::session::SessionName;

/// The visitor of a page, and the visitor's permissions.
#[derive(Clone)]
pub(super) struct Visitor {
    /// The name under which decisions are recorded; `None`: not signed in.
    pub operator: Option<Operator>,
    /// Whether the visitor may settle operations.
    pub may_operate: bool,
    /// Whether the visitor has a session, which sign-out ends.
    pub has_session: bool,
    /// The proof that the visitor's forms contain.
    pub proof: String,
    /// The session name in the cookie of the visitor's browser.
    pub name: SessionName,
}

/// The form field with the proof.
pub(super) const PROOF_FIELD: &str = "proof";
