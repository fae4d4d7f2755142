//! What the fuzz targets measure the program by: each module says a second time, slowly and in
//! other words, what a part of it is for. Nothing here is shared with that part.

pub mod framing;
pub mod iptables;
pub mod nft;
pub mod packet;
pub mod spelling;
