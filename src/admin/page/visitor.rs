//! The visitor of a page.

use crate::admin::auth::Operator;
use crate::admin::session::SessionName;

/// The visitor of a page, and their rights.
#[derive(Clone)]
pub(super) struct Visitor {
    /// The name under which decisions are recorded; `None`: not signed in.
    pub operator: Option<Operator>,
    /// Whether they may settle operations.
    pub may_operate: bool,
    /// Whether they have a session that they can end.
    pub has_session: bool,
    /// The proof that their forms carry.
    pub proof: String,
    /// The session name in their browser's cookie.
    pub name: SessionName,
}

/// The form field with the proof.
pub(super) const PROOF_FIELD: &str = "proof";
