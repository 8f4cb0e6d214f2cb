//! Facts about a request that are neither in its head nor in its body.
//!
//! A tower service takes only a request, so a server passes these facts to the layer as request
//! extensions. Only [`RequestContext::from_extensions`] reads these extensions, once per request:
//! in the layer, or at the start of an internal call. Inside the gate the facts are parameters.
//!
//! All other extensions are for the service behind the gate. The layer adds the index of the
//! upstream. The gate adds the send rule, as `Arc<SendRule>`. For an upgrade the gate also adds the
//! permit of the request.

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

/// The facts about a request besides its head and body.
#[derive(Clone, Default)]
pub struct RequestContext {
    /// The share of the client's address in the common limits. If it is `None`, only the common
    /// limits apply to the request.
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
