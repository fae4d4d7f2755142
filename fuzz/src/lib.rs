//! References for the fuzz targets: each module implements a part of the program a second time, slowly and
//! simply, and shares no code with it.

pub mod framing;
pub mod iptables;
pub mod nft;
pub mod packet;
pub mod spelling;
