//! The template of a script: what its variables stand for, and how they are filled in.

use std::fmt;
use std::net::IpAddr;

use crate::rules::error::{ScriptError, SyntaxError};
use crate::rules::limits::{LONGEST_WORD, MULTIPORT_SLOTS};
use crate::selectors::{Cidr, Mark, PortRange};

/// The script that is used if none is given.
pub const BUNDLED: &str = include_str!("bundled.iptables");

/// The values of a script's `${…}`.
#[derive(Clone, Debug)]
pub struct Values {
    /// `${CIDRS}`: the captured blocks of the family.
    pub cidrs: Vec<Cidr>,
    /// `${DPORTS}`: the captured ports.
    pub dports: Vec<PortRange>,
    /// `${ON_IP}`: where the listener is bound.
    pub on_ip: IpAddr,
    /// `${ON_PORT}`: the listener's port, host order.
    pub on_port: u16,
    /// `${MARK}`: the mark that leads to the listener.
    pub mark: Mark,
}

/// A line of a script, with the number of the template's line that it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Counted from 1.
    pub number: usize,
    /// The text, with every variable filled in.
    pub text: String,
}

/// Fills in the variables of a template. A line with lists that are too long for `iptables-restore`
/// (a word of 1023 bytes, 15 ports) becomes several lines.
///
/// # Errors
/// A variable that does not exist, or a long list in a line that would mean something else in parts.
pub fn render(template: &str, values: &Values) -> Result<Vec<Line>, ScriptError> {
    let cidr_length = |cidr: &Cidr| cidr.to_string().len() + 1;
    let all_cidrs = chunks(&values.cidrs, LONGEST_WORD, cidr_length);
    let all_dports = chunks(&values.dports, MULTIPORT_SLOTS, PortRange::multiport_slots);
    let mut lines = Vec::new();
    let template = template.strip_suffix('\n').unwrap_or(template);
    for (number, text) in (1..).zip(template.split('\n')) {
        if text.starts_with('#') {
            let text = text.to_owned();
            lines.push(Line { number, text });
            continue;
        }
        for cidrs in parts(text, "${CIDRS}", &all_cidrs, number)? {
            for dports in parts(text, "${DPORTS}", &all_dports, number)? {
                let text = fill(text, |name| match name {
                    "${CIDRS}" => Some(cidrs.clone()),
                    "${DPORTS}" => Some(dports.clone()),
                    "${ON_IP}" => Some(values.on_ip.to_string()),
                    "${ON_PORT}" => Some(values.on_port.to_string()),
                    "${MARK}" => Some(values.mark.to_string()),
                    _ => None,
                });
                let text = text.map_err(|variable| {
                    let expected =
                        "supported are ${CIDRS}, ${DPORTS}, ${ON_IP}, ${ON_PORT} and ${MARK}";
                    SyntaxError::new(variable, expected).at(number)
                })?;
                lines.push(Line { number, text });
            }
        }
    }
    Ok(lines)
}

/// What a line that has no such variable puts in its place.
const UNUSED: &[String] = &[String::new()];

/// The values of a list variable, each for a line of its own.
fn parts<'v>(
    text: &str,
    variable: &str,
    values: &'v [String],
    number: usize,
) -> Result<&'v [String], ScriptError> {
    let uses = pieces(text).filter(|piece| *piece == variable).count();
    let negated = text.split_ascii_whitespace().any(|word| word == "!");
    match (uses, values.len()) {
        (0, _) => Ok(UNUSED),
        (1, _) if !negated => Ok(values),
        (_, 0..=1) => Ok(values),
        _ => {
            let expected =
                "expected it once, in a line without !, because the list needs several lines";
            Err(SyntaxError::new(variable, expected).at(number))
        }
    }
}

/// Puts a value in the place of every variable.
///
/// # Errors
/// The first variable that has none.
fn fill(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, &str> {
    pieces(text)
        .map(|piece| match piece.starts_with(VARIABLE) {
            true => value(piece).ok_or(piece),
            false => Ok(piece.to_owned()),
        })
        .collect()
}

/// How a variable starts.
const VARIABLE: &str = "${";

/// The variables of a text, each up to its `}`, and what stands between them.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let length = match rest.starts_with(VARIABLE) {
            true => rest.find('}').map_or(rest.len(), |end| end + 1),
            false => {
                let next = rest.char_indices().skip(1).find(|(_, c)| *c == '$');
                next.map_or(rest.len(), |(at, _)| at)
            }
        };
        let (piece, behind) = rest.split_at(length);
        rest = behind;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The script as text, as `iptables-restore` reads it.
pub fn text(lines: &[Line]) -> String {
    lines
        .iter()
        .flat_map(|line| [line.text.as_str(), "\n"])
        .collect()
}

/// Comma-separated lists of all items, none of which weighs more than `limit`.
fn chunks<T: fmt::Display>(items: &[T], limit: usize, weight: impl Fn(&T) -> usize) -> Vec<String> {
    let mut lists: Vec<String> = Vec::new();
    let mut room = 0;
    for item in items {
        match (lists.last_mut(), weight(item)) {
            (Some(list), weight) if weight <= room => {
                list.push_str(&format!(",{item}"));
                room -= weight;
            }
            (_, weight) => {
                lists.push(item.to_string());
                room = limit - weight;
            }
        }
    }
    lists
}
