//! Facts about a request that are neither in its head nor in its body.
//!
//! A tower service takes nothing but a request, so a server passes these facts to the layer as
//! request extensions. [`RequestContext::from_extensions`] is the only reader of them: it runs once
//! per request, before the gate, and inside the gate they are parameters.
//!
//! All other extensions are for the service behind the gate. The layer adds the upstream's index;
//! the gate adds the send rule, as `Arc<SendRule>`, and for an upgrade the request's permit.

use std::sync::Arc;

use bytes::Bytes;
use http::Extensions;

use crate::gate::share::AddressShare;
use crate::telemetry::Trail;

/// The subject of a client's certificate, as DER; never empty.
///
/// # Security
/// The server that inserts this request extension must have verified the certificate: the gate
/// takes the subject as proof of who the client is.
#[derive(Clone)]
pub struct ClientSubject(pub Bytes);

/// What a server knows about a request beside its head and body.
#[derive(Clone, Default)]
pub struct RequestContext {
    /// The share of the client's address in the common limits. Without it only the common limits
    /// bind the request.
    pub address_share: Option<Arc<AddressShare>>,
    /// The subject of the client's verified certificate.
    pub client_subject: Option<ClientSubject>,
    /// Collects what happens to the request, for the access log and for traces.
    pub trail: Option<Trail>,
}

impl RequestContext {
    /// Reads the context that a server has put into the request's extensions.
    pub fn from_extensions(extensions: &Extensions) -> RequestContext {
        RequestContext {
            address_share: extensions.get::<Arc<AddressShare>>().cloned(),
            client_subject: extensions.get::<ClientSubject>().cloned(),
            trail: Trail::of(extensions),
        }
    }
}
