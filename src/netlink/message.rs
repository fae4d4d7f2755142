//! Netlink messages and their attributes, written and read. From netlink(7) and linux/netlink.h.

use std::io;

use libc::c_int;

/// `sizeof(struct nlmsghdr)`: length, type, flags, sequence, port
const HEADER: usize = 16;

/// `NLMSGERR_ATTR_MSG` (linux/netlink.h): the kernel's own words on an error
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Where in the refused message the attribute is that is the reason
const NLMSGERR_ATTR_OFFS: u16 = 2;

/// A message that is being written: a header, the family's own header, and attributes.
#[derive(Clone, Debug)]
pub struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of type `kind` with `NLM_F_REQUEST` and `flags`, and the family's header.
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

    /// An attribute with these bytes.
    pub fn put(&mut self, kind: u16, payload: &[u8]) -> &mut Message {
        self.attribute(kind, |message| message.bytes.extend_from_slice(payload))
    }

    /// An attribute with a text and its closing NUL (`NLA_NUL_STRING`).
    pub fn put_text(&mut self, kind: u16, text: &str) -> &mut Message {
        self.attribute(kind, |message| {
            message.bytes.extend_from_slice(text.as_bytes());
            message.bytes.push(0);
        })
    }

    /// A number in network order, as nf_tables has them.
    pub fn put_be32(&mut self, kind: u16, number: u32) -> &mut Message {
        self.put(kind, &number.to_be_bytes())
    }

    /// A number in host order, as rtnetlink has them.
    pub fn put_ne32(&mut self, kind: u16, number: u32) -> &mut Message {
        self.put(kind, &number.to_ne_bytes())
    }

    /// An attribute of the attributes that `fill` writes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        self.attribute(kind | libc::NLA_F_NESTED as u16, fill)
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
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

    /// Asks for an acknowledgement (`NLM_F_ACK`).
    pub fn acknowledge(&mut self) {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | libc::NLM_F_ACK as u16;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
    }

    /// What an attribute holds that begins at `offset`.
    pub fn at(&self, offset: usize) -> Option<&[u8]> {
        self.bytes.get(offset..)?.get(4..)
    }

    /// The bytes as they are sent.
    pub fn finish(&self, sequence: u32) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes[0..4].copy_from_slice(&(self.bytes.len() as u32).to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }
}

/// A message that the kernel sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received<'a> {
    /// The message type.
    pub kind: u16,
    /// Such as `NLM_F_REPLACE`.
    pub flags: u16,
    /// The sequence number of the request that it answers; 0 for a notification.
    pub sequence: u32,
    /// What stands behind the header.
    pub payload: &'a [u8],
}

/// The messages of a datagram; a malformed one ends it.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = u32_at(rest, 0)? as usize;
        let message = rest.get(..length)?;
        let received = Received {
            kind: u16_at(message, 4)?,
            flags: u16_at(message, 6)?,
            sequence: u32_at(message, 8)?,
            payload: message.get(HEADER..)?,
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    })
}

/// The attributes in `bytes`, by type and payload; a malformed one ends them.
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

/// A number in host order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number in host order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Why the kernel refused a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which message of the request, counted from 0.
    pub message: usize,
    /// The error number.
    pub errno: c_int,
    /// The kernel's own words, if it has any (`NETLINK_EXT_ACK`).
    pub words: Option<String>,
    /// Where in the message the attribute begins that it refused, if it says so.
    pub offset: Option<usize>,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal {
            message: 0,
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            words: None,
            offset: None,
        }
    }
}

/// Why a request was refused, the first message of which had the sequence number `first`.
///
/// `struct nlmsgerr`: an error number (0 acknowledges), the header of the request (and no more of
/// it: `NETLINK_CAP_ACK`), and attributes. The end of a dump starts with an error number as well.
pub fn refused(message: Received<'_>, first: u32) -> Option<Refusal> {
    let truncated = (-libc::EPROTO).cast_unsigned();
    let errno = u32_at(message.payload, 0)
        .unwrap_or(truncated)
        .cast_signed();
    if errno == 0 {
        return None;
    }
    let mut refusal = Refusal {
        message: message.sequence.wrapping_sub(first) as usize,
        errno: errno.wrapping_neg(),
        words: None,
        offset: None,
    };
    for (kind, value) in attributes(message.payload.get(4 + HEADER..).unwrap_or_default()) {
        match kind {
            NLMSGERR_ATTR_MSG => {
                let words = String::from_utf8_lossy(value);
                refusal.words = Some(words.trim_end_matches('\0').to_owned());
            }
            NLMSGERR_ATTR_OFFS => refusal.offset = u32_at(value, 0).map(|offset| offset as usize),
            _ => {}
        }
    }
    Some(refusal)
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
        let bytes = message.finish(9);
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
    fn a_length_beyond_the_end_ends_the_reading() {
        assert_eq!(attributes(&[9, 0, 1, 0, 0, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(messages(&[255; 16]).count(), 0);
        assert_eq!(messages(&[0; 32]).count(), 0);
    }

    #[test]
    fn a_refusal_names_the_message_and_the_kernels_words() {
        let mut answer = Message::new(libc::NLMSG_ERROR as u16, 0, &(-libc::EEXIST).to_ne_bytes());
        answer.bytes.extend_from_slice(&[0; HEADER]);
        answer.put_text(NLMSGERR_ATTR_MSG, "it is there");
        let bytes = answer.finish(12);
        let refusal = refused(messages(&bytes).next().unwrap(), 10).unwrap();
        let words = Some("it is there".to_owned());
        assert_eq!(
            refusal,
            Refusal {
                message: 2,
                errno: libc::EEXIST,
                words,
                offset: None,
            }
        );
    }
}
