//! Flags in byte 13 of the TCP header (RFC 9293, 3.1).

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronize sequence numbers: opens a connection.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// Push data to the application.
pub const PSH: u8 = 0x08;
/// The acknowledgment number is significant.
pub const ACK: u8 = 0x10;
/// The urgent pointer is significant.
pub const URG: u8 = 0x20;
