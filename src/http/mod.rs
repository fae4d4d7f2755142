//! HTTP/1 (RFC 9110, RFC 9112) as an origin server reads and writes it: bytes to a request, and a
//! response to bytes. Nothing here performs I/O.
//!
//! In the order in which data passes through:
//!
//! 1. `head`: `HeadScanner` finds the end of a request head, `Head::parse` reads it. `request_line`
//!    reads its first line; `fields` interprets the field lines, which `httparse` splits.
//! 2. `body`: decodes what follows the head.
//! 3. `echo`: writes the content of the response, in JSON by `json_echo`. `accept` chooses the form, `directives` the
//!    status and the delay.
//! 4. `response`: puts the head of the response in front of its content.
//! 5. `log_lines`: the line of the request.
//!
//! Below them: `status` (status codes, and why a request is refused), `endpoints` (of the connection) and `syntax`
//! (character classes).
//!
//! Supported:
//! - HTTP/1.0 and every HTTP/1.x (a higher minor version is read as 1.1: RFC 9110, 2.5)
//! - the target in origin-form, in absolute-form and, for OPTIONS, in asterisk-form
//! - framing by Content-Length or by the chunked transfer coding
//! - persistent connections in both versions, `Expect: 100-continue`
//!
//! Refused, with the status that the RFCs ask for:
//! - other protocols: TLS, HTTP/2, HTTP/0.9, the PROXY protocol
//! - lines that do not end with CRLF, folded field lines, whitespace in front of a colon, more than one
//!   Host field, and every form of framing that two parsers could interpret differently
//! - CONNECT, TRACE, transfer codings other than chunked, expectations other than 100-continue

pub mod accept;
pub mod body;
pub mod directives;
pub mod echo;
pub mod endpoints;
pub mod fields;
pub mod head;
pub mod json_echo;
pub mod log_lines;
pub mod request_line;
pub mod response;
pub mod status;
pub mod syntax;
