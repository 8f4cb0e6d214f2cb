//! The visitor of a page.

use crate::admin::auth::{Operator, Permission};
use crate::admin::problem::AdminRefusal;
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
    /// The number of dead letters at the relay's last look, for the menu.
    pub dead_letters: u64,
    /// Whether the menu has the sagas: some are configured, or in the store.
    pub has_sagas: bool,
}

impl Visitor {
    /// Returns the operator, if the visitor may make changes.
    ///
    /// # Errors
    /// The visitor may only read.
    pub(super) fn operator_of_change(&self) -> Result<&Operator, AdminRefusal> {
        self.operator.as_ref().filter(|_| self.may_operate).ok_or(AdminRefusal::ReadOnly)
    }

    /// Returns what the visitor's role permits to see.
    pub(super) fn permission(&self) -> Permission {
        if self.may_operate { Permission::Operate } else { Permission::Read }
    }
}

/// The form field with the proof.
pub(super) const PROOF_FIELD: &str = "proof";
