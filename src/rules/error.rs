//! Errors in a script. Both name the word at fault and what was expected; a [`ScriptError`] also
//! names the line, which a parser of single words does not know.

use std::fmt;

use crate::log::escape::escaped;

/// A word that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    word: String,
    expected: String,
}

impl SyntaxError {
    /// An error at `word`; an empty `word` means that one is missing.
    pub fn new(word: &str, expected: impl Into<String>) -> SyntaxError {
        SyntaxError {
            word: word.to_owned(),
            expected: expected.into(),
        }
    }

    /// Adds the number of the line, counted from 1.
    pub fn at(self, line: usize) -> ScriptError {
        ScriptError { line, error: self }
    }
}

/// Refuses `word` unless `holds`.
///
/// # Errors
/// [`SyntaxError::new`] of the other arguments.
pub fn require(holds: bool, word: &str, expected: impl Into<String>) -> Result<(), SyntaxError> {
    match holds {
        true => Ok(()),
        false => Err(SyntaxError::new(word, expected)),
    }
}

/// A script that was refused: the line, the word, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptError {
    line: usize,
    error: SyntaxError,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SyntaxError { word, expected } = &self.error;
        write!(f, "line {}: ", self.line)?;
        if !word.is_empty() {
            write!(f, "\"{}\": ", escaped(word.as_bytes()))?;
        }
        f.write_str(expected)
    }
}
