//! A log line with fields: a message, and what belongs to it by name. The message ends with ` : ` where the
//! line is text, and the fields follow as `name=value`; in JSON all are members of an object.

use crate::log::LogFormat;
use crate::log::buffer::Buffer;
use crate::log::escape::{MAX_ESCAPED, push_escaped};
use crate::log::json;

/// The name of a field, with what separates it from others. See [`field_name`].
#[derive(Clone, Copy, Debug)]
pub struct FieldName {
    text: &'static str,
    json: &'static str,
}

impl FieldName {
    /// The name between its separators in either form.
    pub const fn new(text: &'static str, json: &'static str) -> FieldName {
        FieldName { text, json }
    }
}

/// The [`FieldName`] of a literal, or of two: in text, and in JSON.
macro_rules! field_name {
    ($name:literal) => {
        field_name!($name, $name)
    };
    ($text:literal, $json:literal) => {
        FieldName::new(concat!(" ", $text, "="), concat!(",\"", $json, "\":"))
    };
}

pub(crate) use field_name;

/// A line that is being written, without time and level.
#[derive(Debug)]
pub struct Line<'b> {
    content: &'b mut Buffer,
    format: LogFormat,
}

impl<'b> Line<'b> {
    /// A line with this message, to which bytes that a peer sent belong. It takes the place of the content of a
    /// buffer.
    pub fn new(
        content: &'b mut Buffer,
        format: LogFormat,
        message: &'static str,
        bytes: &[u8],
    ) -> Line<'b> {
        content.resize(0);
        match format {
            LogFormat::Text => {
                content.push(message.as_bytes());
                push_escaped(content, bytes);
                content.push(b" :");
            }
            LogFormat::Json => {
                content.push(b"\"message\":\"");
                content.push(message.as_bytes());
                json::push_content(content, bytes, MAX_ESCAPED);
                content.push(b"\"");
            }
        }
        Line { content, format }
    }

    /// Adds text that needs no escaping in either form, such as an address.
    pub fn plain(&mut self, name: FieldName, text: &[u8]) {
        self.name(name);
        match self.format {
            LogFormat::Text => self.content.push(text),
            LogFormat::Json => self.quoted(|content| content.push(text)),
        }
    }

    /// Adds a word that a peer sent.
    pub fn word(&mut self, name: FieldName, bytes: &[u8]) {
        self.name(name);
        match self.format {
            LogFormat::Text => push_escaped(self.content, bytes),
            LogFormat::Json => json::push_string(self.content, bytes, MAX_ESCAPED),
        }
    }

    /// Adds bytes that a peer sent, which may have spaces: quoted in either form.
    pub fn string(&mut self, name: FieldName, bytes: &[u8]) {
        self.name(name);
        match self.format {
            LogFormat::Text => self.quoted(|content| push_escaped(content, bytes)),
            LogFormat::Json => json::push_string(self.content, bytes, MAX_ESCAPED),
        }
    }

    /// Adds words of the program: quoted in either form.
    pub fn words(&mut self, name: FieldName, words: &str) {
        self.name(name);
        match self.format {
            LogFormat::Text => self.quoted(|content| content.push(words.as_bytes())),
            LogFormat::Json => json::push_string(self.content, words.as_bytes(), MAX_ESCAPED),
        }
    }

    /// Adds a number.
    pub fn number(&mut self, name: FieldName, number: u64) {
        self.name(name);
        self.content.push_number(number);
    }

    /// Adds a time in µs, which the text says behind it.
    pub fn micros(&mut self, name: FieldName, micros: u64) {
        self.number(name, micros);
        if self.format == LogFormat::Text {
            self.content.push(b"us");
        }
    }

    fn name(&mut self, name: FieldName) {
        let name = match self.format {
            LogFormat::Text => name.text,
            LogFormat::Json => name.json,
        };
        self.content.push(name.as_bytes());
    }

    fn quoted(&mut self, push: impl FnOnce(&mut Buffer)) {
        self.content.push(b"\"");
        push(self.content);
        self.content.push(b"\"");
    }

    /// The line so far: printable ASCII.
    pub fn content(&mut self) -> &[u8] {
        self.content.bytes()
    }
}
