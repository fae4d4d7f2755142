//! Netlink messages and attributes: requests are written, replies and notifications are parsed.
//!
//! Knows no socket and no protocol family. From netlink(7) and linux/netlink.h.

use std::io;

use libc::c_int;

/// `sizeof(struct nlmsghdr)`: length, type, flags, sequence number, port ID
const HEADER: usize = size_of::<libc::nlmsghdr>();

/// `NLMSGERR_ATTR_MSG` (linux/netlink.h): the error message, a string
const NLMSGERR_ATTR_MSG: u16 = 1;
/// `NLMSGERR_ATTR_OFFS`: the offset of the refused attribute in the request
const NLMSGERR_ATTR_OFFS: u16 = 2;

/// A request: the netlink header, the header of the protocol family, and attributes.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of type `kind` with `NLM_F_REQUEST`, `flags`, and the header of the protocol family.
    pub fn new(kind: u16, flags: c_int, family_header: &[u8]) -> Message {
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(family_header);
        let mut message = Message { bytes };
        message.pad();
        message
    }

    /// Appends an attribute with this payload.
    pub fn put(&mut self, kind: u16, payload: &[u8]) -> &mut Message {
        self.put_attribute(kind, |message| message.bytes.extend_from_slice(payload))
    }

    /// Appends a string attribute, terminated by NUL (`NLA_NUL_STRING`).
    pub fn put_text(&mut self, kind: u16, text: &str) -> &mut Message {
        self.put_attribute(kind, |message| {
            message.bytes.extend_from_slice(text.as_bytes());
            message.bytes.push(0);
        })
    }

    /// Appends a number in network order, as nf_tables expects.
    pub fn put_be32(&mut self, kind: u16, number: u32) -> &mut Message {
        self.put(kind, &number.to_be_bytes())
    }

    /// Appends a number in host order, as rtnetlink expects.
    pub fn put_ne32(&mut self, kind: u16, number: u32) -> &mut Message {
        self.put(kind, &number.to_ne_bytes())
    }

    /// Appends an attribute whose payload is the attributes that `fill` appends (`NLA_F_NESTED`).
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        self.put_attribute(kind | libc::NLA_F_NESTED as u16, fill)
    }

    fn put_attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start)
            .expect("attributes are built shorter than 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Requests an acknowledgement (`NLM_F_ACK`).
    pub fn request_ack(&mut self) {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | libc::NLM_F_ACK as u16;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    /// The bytes from the payload of the attribute at `offset` on; see [`Refusal::offset`].
    pub fn payload_at(&self, offset: usize) -> Option<&[u8]> {
        self.bytes.get(offset..)?.get(4..)
    }

    /// The message as it is sent, with its length and this sequence number.
    pub fn to_bytes(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[0..4].copy_from_slice(&(self.bytes.len() as u32).to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }
}

/// A message from the kernel: a reply or a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceivedMessage<'a> {
    /// The message type.
    pub kind: u16,
    /// The flags, such as `NLM_F_REPLACE`.
    pub flags: u16,
    /// The sequence number of the request; 0 in a notification.
    pub sequence: u32,
    /// The bytes after the header.
    pub payload: &'a [u8],
}

/// Iterates over the messages of a datagram, up to the first malformed one.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = ReceivedMessage<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32_at(rest, 0)? as usize;
        let message = rest.get(..length)?;
        let received = ReceivedMessage {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            sequence: u32_at(message, 8)?,
            payload: message.get(HEADER..)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    })
}

/// Iterates over attributes as (type, payload), up to the first malformed one.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & libc::NLA_TYPE_MASK as u16;
        let payload = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The payload of the first attribute of type `kind`.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, payload)| (found == kind).then_some(payload))
}

/// The `u16` at `offset`, host order.
fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The `u32` at `offset`, host order.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The kernel's refusal of a request (`struct nlmsgerr`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The index of the refused message in the request.
    pub index: usize,
    /// The error number.
    pub errno: c_int,
    /// The kernel's error message, if any (`NETLINK_EXT_ACK`).
    pub message: Option<String>,
    /// The offset of the refused attribute in the message, in bytes, if the kernel reports it.
    pub offset: Option<usize>,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            ..Refusal::default()
        }
    }
}

/// Parses `NLMSG_ERROR` or `NLMSG_DONE`, the reply to a request whose first message has the sequence
/// number `first`.
///
/// `struct nlmsgerr` has an error number (0: acknowledged), the header of the request alone
/// (`NETLINK_CAP_ACK`), and attributes. `NLMSG_DONE` starts with an error number too.
///
/// # Errors
/// The kernel's error number; `EPROTO` if the reply has none.
pub fn read_acknowledgement(message: ReceivedMessage<'_>, first: u32) -> Result<(), Refusal> {
    let errno = match u32_at(message.payload, 0) {
        Some(0) => return Ok(()),
        Some(errno) => errno.cast_signed().wrapping_neg(),
        None => libc::EPROTO,
    };
    let mut refusal = Refusal {
        index: message.sequence.wrapping_sub(first) as usize,
        errno,
        ..Refusal::default()
    };
    for (kind, value) in attributes(message.payload.get(4 + HEADER..).unwrap_or_default()) {
        match kind {
            NLMSGERR_ATTR_MSG => {
                let text = String::from_utf8_lossy(value);
                refusal.message = Some(text.trim_end_matches('\0').to_owned());
            }
            NLMSGERR_ATTR_OFFS => refusal.offset = u32_at(value, 0).map(|offset| offset as usize),
            _ => {}
        }
    }
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded_to_four_bytes_and_nest() {
        let mut message = Message::new(7, libc::NLM_F_ACK, &[1]);
        message.nest(2, |inner| {
            inner.put_text(3, "ab").put_be32(4, 5);
        });
        let bytes = message.to_bytes(9);
        let received: Vec<_> = messages(&bytes).collect();
        assert_eq!(received.len(), 1);
        assert_eq!((received[0].kind, received[0].sequence), (7, 9));
        let outer: Vec<_> = attributes(&received[0].payload[4..]).collect();
        assert_eq!(outer.len(), 1);
        let inner: Vec<_> = attributes(outer[0].1).collect();
        assert_eq!(
            (outer[0].0, inner),
            (2, vec![(3, &b"ab\0"[..]), (4, &[0, 0, 0, 5][..])])
        );
    }

    #[test]
    fn a_length_beyond_the_end_ends_the_iteration() {
        assert_eq!(attributes(&[9, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(messages(&[255; 16]).count(), 0);
        assert_eq!(messages(&[0; 32]).count(), 0);
    }

    #[test]
    fn a_refusal_has_the_index_of_the_request_and_the_kernels_message() {
        let mut reply = Message::new(libc::NLMSG_ERROR as u16, 0, &(-libc::EEXIST).to_ne_bytes());
        reply.bytes.extend_from_slice(&[0; HEADER]);
        reply.put_text(NLMSGERR_ATTR_MSG, "it is there");
        let bytes = reply.to_bytes(12);
        let refusal = read_acknowledgement(messages(&bytes).next().unwrap(), 10);
        assert_eq!(
            refusal,
            Err(Refusal {
                index: 2,
                errno: libc::EEXIST,
                message: Some("it is there".to_owned()),
                offset: None,
            })
        );
    }
}
