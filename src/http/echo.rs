//! The echo, which is the content of a response. `json_echo` has it as JSON.

use crate::http::accept::prefers_json;
use crate::http::endpoints::Endpoints;
use crate::http::head::Head;
use crate::http::json_echo;
use crate::http::response::Content;
use crate::http::status::Rejection;
use crate::log::buffer::Buffer;
use crate::log::timestamp::Timestamp;

/// The largest content that is echoed, in bytes. The rest is read and counted.
pub const MAX_ECHO: usize = 64 * 1024;

/// An echo that is being written: the request's content is appended between its beginning and its end.
#[derive(Clone, Copy, Debug)]
pub struct Echo {
    is_json: bool,
    /// The index of the first byte of the request's content.
    start: usize,
}

impl Echo {
    /// Begins the echo of a request, in the form that its client prefers.
    pub fn begin(
        echo: &mut Buffer,
        head: &Head<'_>,
        endpoints: &Endpoints,
        node: Option<&str>,
    ) -> Echo {
        match head.prefers_json {
            true => json_echo::begin(echo, head, endpoints, node),
            false => begin_text(echo, head, endpoints, node),
        }
        Echo {
            is_json: head.prefers_json,
            start: echo.len(),
        }
    }

    /// The most bytes of the request's content that may be appended.
    pub fn room(self) -> usize {
        match self.is_json {
            true => MAX_ECHO.min(json_echo::room(self.start)),
            false => MAX_ECHO,
        }
    }

    /// Ends the echo of a request whose content has `received` bytes.
    pub fn end(self, echo: &mut Buffer, received: u64) {
        match self.is_json {
            true => json_echo::end(echo, self.start, received),
            false => end_text(echo, received),
        }
    }

    /// What it is in a response.
    pub fn content(self) -> Content {
        match self.is_json {
            true => Content::Json,
            false => Content::Text,
        }
    }
}

/// The first line, the endpoints, the node, the time, and the head as received.
fn begin_text(echo: &mut Buffer, head: &Head<'_>, endpoints: &Endpoints, node: Option<&str>) {
    echo.push(b"Request received from ");
    echo.push(head.host);
    echo.push(b" destination ");
    echo.push(head.target);
    echo.push(b" : ");
    echo.push(head.method);
    echo.push(b" ");
    echo.push(head.target);
    echo.push(b" ");
    echo.push(head.version);
    echo.push(b"\nClient: ");
    echo.push(endpoints.client.as_bytes());
    echo.push(b"\nDestination: ");
    echo.push(endpoints.destination.as_bytes());
    if let Some(node) = node {
        echo.push(b"\nNode: ");
        echo.push(node.as_bytes());
    }
    echo.push(b"\nTime: ");
    Timestamp::now().push_rfc3339(echo);
    echo.push(b"\n\n");
    echo.push(head.bytes);
}

/// Says how many of the content's bytes are not echoed.
fn end_text(echo: &mut Buffer, received: u64) {
    if let Some(more @ 1..) = received.checked_sub(MAX_ECHO as u64) {
        let note = format!("\n[{more} more bytes of {received} are not echoed]\n");
        echo.push(note.as_bytes());
    }
}

/// Writes the content of a response that refuses a request, of which `request` has arrived, in the form that the client
/// prefers; returns what it is.
pub fn refusal(content: &mut Buffer, rejection: Rejection, request: &[u8]) -> Content {
    if prefers_json(request) {
        json_echo::refusal(content, rejection);
        return Content::Json;
    }
    rejection.status.push_line(content);
    content.push(b": ");
    content.push(rejection.reason.as_bytes());
    content.push(b"\n");
    Content::Text
}
