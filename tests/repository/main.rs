//! The texts and the sources of this repository.

mod imports;
mod pages;
mod rooms;
