//! Typed rules, written to the kernel as one nf_tables transaction.
//!
//! In the order in which data passes through: `compile` turns rules into expressions, `bridge` makes
//! those that redirect frames of bridges; `expression` writes each as attributes, `batch` a whole
//! transaction; `table` owns what is in the kernel.

mod batch;
pub mod bridge;
pub mod compile;
pub mod expression;
pub mod table;
