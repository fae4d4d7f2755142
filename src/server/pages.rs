//! What a listener answers to connections that are not captured: the node's own to the listener's address, and
//! those to `--metrics`. The method, the query and the content of a request make no difference.

use crate::http::response::Content;
use crate::http::status::Status;
use crate::log::buffer::Buffer;
use crate::server::acceptor::ListenerKind;
use crate::server::context::Context;
use crate::server::limit::ConnectionLimit;
use crate::server::{metrics, state};

/// Writes the content of the response for this path; returns its status and what it is.
pub fn write(
    content: &mut Buffer,
    path: &[u8],
    kind: ListenerKind,
    context: &Context,
    limit: &ConnectionLimit,
) -> (Status, Content) {
    let is_on_loopback = kind != ListenerKind::Metrics;
    match path {
        b"/metrics" => {
            metrics::write(content, context, limit);
            (Status::OK, Content::Metrics)
        }
        b"/healthz" if context.is_draining() => {
            content.push(b"draining\n");
            (Status::SERVICE_UNAVAILABLE, Content::Text)
        }
        b"/healthz" => {
            content.push(b"ok\n");
            (Status::OK, Content::Text)
        }
        b"/readyz" if is_on_loopback => {
            let is_ready = context.report().push_readiness(content);
            content.push(b"\n");
            match is_ready {
                true => (Status::OK, Content::Text),
                false => (Status::SERVICE_UNAVAILABLE, Content::Text),
            }
        }
        b"/" if is_on_loopback => {
            state::write(content, context, limit);
            (Status::OK, Content::Text)
        }
        _ => {
            content.push(match is_on_loopback {
                true => b"this is the listener itself, not a Pod: only /, /healthz, /readyz and /metrics are here\n",
                false => b"only /metrics and /healthz are here\n".as_slice(),
            });
            (Status::NOT_FOUND, Content::Text)
        }
    }
}
