//! Access to what a lock guards, also after a panic of the thread that held it.
//!
//! A panic aborts the released program, so its locks are never poisoned. In tests a panic unwinds, and
//! what a lock guards is whole at any moment.

use std::sync::{LockResult, PoisonError};

/// The guard of a lock, or what a condition variable returns, poisoned or not.
pub fn unpoisoned<T>(result: LockResult<T>) -> T {
    result.unwrap_or_else(PoisonError::into_inner)
}
