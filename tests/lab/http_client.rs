//! An HTTP connection: sends requests, and reads responses by their framing.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::{Lab, Namespace, PATIENCE, connect_from};

/// A short request that keeps the connection open.
pub const REQUEST: &str = "GET / HTTP/1.1\r\nHost: pod\r\n\r\n";

/// A response, as received.
#[derive(Debug)]
pub struct Response {
    /// For example `200 OK`.
    pub status: String,
    /// Field lines, in order.
    pub fields: Vec<String>,
    /// Content, of the length in Content-Length.
    pub content: Vec<u8>,
}

impl Response {
    /// Whether the connection ends with this response.
    pub fn is_last(&self) -> bool {
        self.fields.iter().any(|line| line == "Connection: close")
    }

    /// Value of a field.
    pub fn field(&self, name: &str) -> &str {
        let prefix = format!("{name}: ");
        let mut values = self
            .fields
            .iter()
            .filter_map(|line| line.strip_prefix(&prefix));
        let value = values
            .next()
            .unwrap_or_else(|| panic!("no {name} in {self:?}"));
        assert_eq!(values.next(), None, "one {name} in {self:?}");
        value
    }

    /// Value of Content-Length.
    pub fn length(&self) -> usize {
        self.field("Content-Length").parse().unwrap()
    }

    /// The content as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.content).unwrap()
    }

    /// Field lines after those that start each response, and after those of its content, which is text.
    pub fn other_fields(&self) -> Vec<&str> {
        let date = self.field("Date");
        assert!(date.len() == 29 && date.ends_with(" GMT"), "{self:?}");
        let server = concat!("tproxy-pod/", env!("CARGO_PKG_VERSION"));
        assert_eq!(self.field("Server"), server);
        assert_eq!(self.field("Cache-Control"), "no-store");
        assert_eq!(self.field("Content-Type"), "text/plain; charset=utf-8");
        let others = self.fields[4..].iter().map(String::as_str);
        let is_of_content = |line: &&str| {
            line.starts_with("Content-Length: ") || *line == "Cache-Control: no-store"
        };
        others.skip_while(is_of_content).collect()
    }
}

/// An open connection, with the bytes received so far.
pub struct HttpClient(pub BufReader<TcpStream>);

impl Namespace {
    /// Connects to an address.
    pub fn http(&self, address: &str) -> HttpClient {
        let stream = self
            .connect(address)
            .unwrap_or_else(|error| panic!("{address}: {error}"));
        stream.set_nodelay(true).unwrap();
        HttpClient(BufReader::new(stream))
    }
}

impl Namespace {
    /// Connects from an address and port to an address.
    pub fn http_from(&self, from: &str, address: &str) -> HttpClient {
        let (from, to) = (from.parse().unwrap(), address.parse().unwrap());
        let stream = self.enter(|| connect_from(from, to, *PATIENCE)).unwrap();
        stream.set_read_timeout(Some(*PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        HttpClient(BufReader::new(stream))
    }
}

impl Lab {
    /// Opens `count` connections, each with one response received.
    pub fn open_connections(&self, address: &str, count: usize) -> Vec<HttpClient> {
        let open = |_| {
            let mut connection = self.client.http(address);
            assert_eq!(connection.request(REQUEST).status, "200 OK");
            connection
        };
        (0..count).map(open).collect()
    }
}

impl HttpClient {
    /// Address and port of the client.
    pub fn client(&self) -> String {
        self.0.get_ref().local_addr().unwrap().to_string()
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    /// Shuts down the client's side for writing.
    pub fn shutdown_write(&mut self) {
        self.0.get_mut().shutdown(Shutdown::Write).unwrap();
    }

    /// Sends a request, and reads the response.
    pub fn request(&mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(request);
        self.response()
    }

    /// Reads a response.
    pub fn response(&mut self) -> Response {
        let mut response = self.response_to_head();
        response.content = vec![0; response.length()];
        self.0.read_exact(&mut response.content).unwrap();
        response
    }

    /// Reads the response to a HEAD request, which has no content (RFC 9110, 9.3.2).
    pub fn response_to_head(&mut self) -> Response {
        let first = self.line();
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .unwrap_or_else(|| panic!("no status line: {first:?}"));
        let fields = std::iter::from_fn(|| Some(self.line()).filter(|line| !line.is_empty()));
        Response {
            fields: fields.collect(),
            status: status.to_owned(),
            content: Vec::new(),
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.strip_suffix("\r\n")
            .unwrap_or_else(|| panic!("a line that does not end with CRLF: {line:?}"))
            .to_owned()
    }

    /// Asserts that nothing arrives for 300 ms.
    pub fn assert_no_response_yet(&mut self) {
        assert_eq!(self.0.buffer().escape_ascii().to_string(), "");
        let stream = self.0.get_ref();
        let patience = stream.read_timeout().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let peek = || stream.peek(&mut [0]).map_err(|error| error.kind());
        let kind = std::iter::repeat_with(peek).find(|kind| *kind != Err(ErrorKind::Interrupted));
        assert_eq!(kind, Some(Err(ErrorKind::WouldBlock)));
        stream.set_read_timeout(patience).unwrap();
    }

    /// Waits until the server closes, and asserts that nothing arrives before.
    pub fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        self.0.read_to_end(&mut rest).unwrap();
        assert_eq!(String::from_utf8_lossy(&rest), "", "nothing more comes");
    }
}
