//! The words of a line: splitting, and reading from left to right. The syntax is that of
//! iptables-restore (iptables 1.8, `add_param_to_argv`): blanks separate words, double quotes keep
//! blanks, and a backslash in quotes keeps the next character.

use crate::rules::error::{SyntaxError, require};
use crate::rules::limits::{LONGEST_WORD, MOST_WORDS};

/// Splits a line into words.
///
/// # Errors
/// An open quote, more than [`MOST_WORDS`], a word longer than [`LONGEST_WORD`], or a word with a NUL.
pub fn split(line: &str) -> Result<Vec<String>, SyntaxError> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => {
                read_quoted(&mut letters, &mut word)
                    .ok_or_else(|| SyntaxError::new(line, "expected a closing quote"))?;
                words.push(std::mem::take(&mut word));
            }
            ' ' | '\t' if word.is_empty() => {}
            ' ' | '\t' => words.push(std::mem::take(&mut word)),
            letter => word.push(letter),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    let is_short = words.len() <= MOST_WORDS;
    require(is_short, line, "expected at most 251 words")?;
    for word in &words {
        let is_short = word.len() <= LONGEST_WORD;
        require(is_short, word, "expected at most 1023 bytes")?;
        // A NUL ends a line in iptables and a name in the kernel.
        require(!word.contains('\0'), word, "expected no NUL")?;
    }
    Ok(words)
}

/// Appends the letters up to the closing quote, which ends the word. `None` if there is none.
fn read_quoted(letters: &mut std::str::Chars<'_>, word: &mut String) -> Option<()> {
    loop {
        match letters.next()? {
            '"' => return Some(()),
            '\\' => word.push(letters.next()?),
            letter => word.push(letter),
        }
    }
}

/// A cursor over the words of a line.
pub struct Words<'a> {
    words: std::slice::Iter<'a, String>,
    last: &'a str,
}

impl<'a> Words<'a> {
    /// A cursor at the first word.
    pub fn new(words: &'a [String]) -> Words<'a> {
        Words {
            words: words.iter(),
            last: "",
        }
    }

    /// The next word.
    pub fn next(&mut self) -> Option<&'a str> {
        self.last = self.words.next()?;
        Some(self.last)
    }

    /// The next word, as the value of the option just read.
    ///
    /// # Errors
    /// The line ends, or the word is `!`.
    pub fn value(&mut self) -> Result<&'a str, SyntaxError> {
        let option = self.last;
        match self.next() {
            Some("!") => Err(SyntaxError::new(
                "!",
                format!("expected it in front of {option}"),
            )),
            Some(value) => Ok(value),
            None => Err(SyntaxError::new(option, "expected a value")),
        }
    }

    /// The next word, parsed as the value of the option just read.
    ///
    /// # Errors
    /// As [`Words::value`], or the error of `parse`.
    pub fn parse<T>(
        &mut self,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, SyntaxError> {
        let value = self.value()?;
        parse(value).map_err(|expected| SyntaxError::new(value, expected))
    }
}
