//! Bytes to a request, and a response to bytes. Nothing here knows a socket.
//!
//! In the order in which data passes through: `head` finds and reads a request head, with
//! `request_line` and `fields`; `body` decodes what follows it; `echo` writes what the client reads and
//! what the log says; `response` puts the head of the response in front.

pub mod body;
pub mod echo;
mod fields;
pub mod head;
mod request_line;
pub mod response;
