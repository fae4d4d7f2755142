//! The texts and the sources of this repository.

mod pages;
