//! Intake: reads from a request which operation it asks for, before anything is claimed.

pub(super) mod content;
pub(super) mod heavy_work;
pub(super) mod identify;
pub(super) mod scope;
pub(super) mod upstream_key;

pub use content::Content;
pub use identify::{Identified, identify, wants_protection};
pub use scope::{ClientSubject, VerifiedScope};
pub(super) use upstream_key::CarriedKey;
pub use upstream_key::keep_identifying_fields;
