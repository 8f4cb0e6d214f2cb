//! A response body that owns a guard for as long as it is being sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};

struct GuardedBody<G> {
    body: Body,
    _guard: G,
}

/// Returns a body that owns `guard`, and drops it when the body was sent or abandoned. The body
/// keeps its known length.
pub fn with_guard(body: Body, guard: impl Send + Unpin + 'static) -> Body {
    Body::new(GuardedBody { body, _guard: guard })
}

impl<G: Unpin> HttpBody for GuardedBody<G> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
