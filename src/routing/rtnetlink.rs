//! Constants of rtnetlink(7) that several files here use, and its errors.
//!
//! From linux/rtnetlink.h and linux/fib_rules.h. What libc defines is used from there.

use std::mem::offset_of;

use crate::error::Error;
use crate::netlink::message::Refusal;

/// `sizeof(struct ifinfomsg)`, in bytes
pub const IFINFOMSG: usize = size_of::<libc::ifinfomsg>();
/// Offset of the device index in `struct ifinfomsg`, and in `struct ifaddrmsg`
pub const IFI_INDEX: usize = offset_of!(libc::ifinfomsg, ifi_index);
/// Offset of the device flags in `struct ifinfomsg`
pub const IFI_FLAGS: usize = offset_of!(libc::ifinfomsg, ifi_flags);

/// `LOOPBACK_IFINDEX` (include/net/flow.h): the index of lo in every network namespace
pub const LOOPBACK: u32 = 1;

/// `sizeof(struct fib_rule_hdr)` and `sizeof(struct rtmsg)`, in bytes
pub const ROUTE_HEADER: usize = 12;

pub const FRA_DST: u16 = 1;
pub const FRA_IIFNAME: u16 = 3;
pub const FRA_GOTO: u16 = 4;
pub const FRA_PRIORITY: u16 = 6;
pub const FRA_FWMARK: u16 = 10;
pub const FRA_SUPPRESS_IFGROUP: u16 = 13;
pub const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
pub const FRA_TABLE: u16 = 15;
pub const FRA_FWMASK: u16 = 16;
pub const FRA_PROTOCOL: u16 = 21;
pub const FR_ACT_TO_TBL: u8 = 1;
pub const FR_ACT_GOTO: u8 = 2;
pub const FR_ACT_NOP: u8 = 3;
pub const FIB_RULE_INVERT: u32 = 2;
pub const FIB_RULE_UNRESOLVED: u32 = 4;

/// The error of a refused request: the attempt, the error number, and a hint.
pub fn error(attempt: impl Into<String>, refusal: Refusal) -> Error {
    let error = Error::numbered(attempt, refusal.errno);
    match (refusal.errno, refusal.message) {
        (libc::EPERM, _) => error.hint("CAP_NET_ADMIN is needed"),
        (libc::EACCES, _) => error.hint("is IPv6 disabled on lo?"),
        (_, Some(message)) => error.hint(message),
        (_, None) => error,
    }
}
