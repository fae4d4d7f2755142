//! Texts and sources of this repository.

mod imports;
mod layers;
mod pages;
