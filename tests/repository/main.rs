//! Texts and sources of this repository.

mod imports;
mod pages;
mod rooms;
