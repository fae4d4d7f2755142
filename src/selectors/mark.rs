//! Packet marks (fwmark): what a packet gets, and what a rule of the routing policy selects.

use std::fmt;
use std::str::FromStr;

use crate::selectors::text::number;

/// A packet mark (fwmark) and its mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The bits to compare with, or to set.
    pub value: u32,
    /// The bits to compare, or to write.
    pub mask: u32,
}

impl Mark {
    /// Whether a packet that gets this mark is selected by `selector`, whatever its mark was before.
    pub fn sets(self, selector: Mark) -> bool {
        self.mask & selector.mask == selector.mask && self.value & selector.mask == selector.value
    }
}

impl FromStr for Mark {
    type Err = String;

    /// Parses `VALUE[/MASK]`, hexadecimal (`0x…`) or decimal. The default mask is all ones.
    fn from_str(text: &str) -> Result<Mark, String> {
        let part = |text: &str| {
            number(text)
                .and_then(|number| u32::try_from(number).ok())
                .ok_or_else(|| "expected VALUE/MASK, 32 bits each, such as 0x1/0x1".to_owned())
        };
        let (value, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
        Ok(Mark {
            value: part(value)?,
            mask: part(mask)?,
        })
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{:#x}", self.value, self.mask)
    }
}

/// The marks of captured packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Of packets that the node has received.
    pub received: Mark,
    /// Of packets that the node itself sends; `None` if these are not captured.
    pub sent: Option<Mark>,
}

impl Marks {
    /// Both marks.
    pub fn all(self) -> impl Iterator<Item = Mark> {
        std::iter::once(self.received).chain(self.sent)
    }
}
