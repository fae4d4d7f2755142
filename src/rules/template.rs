//! Templates of scripts: the bundled one or a file, and the substitution of its variables. A rendered
//! line keeps the number of its line in the template, for error messages.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use crate::error::words;
use crate::rules::error::{ScriptError, SyntaxError};
use crate::rules::limits::{LONGEST_WORD, MULTIPORT_SLOTS};
use crate::rules::rule::Protocol;
use crate::selectors::{Cidr, Family, Marks, PortRange};

/// The bundled template.
pub const BUNDLED: &str = include_str!("bundled.iptables");

/// A template and its name for error messages.
pub struct Template {
    /// The name, `the bundled script` or `--rules FILE`.
    pub name: String,
    /// The text, with variables.
    pub text: String,
}

impl Template {
    /// Reads the file, or the bundled template without one. The file may be a pipe: read it once.
    ///
    /// # Errors
    /// `ENOENT`, `EACCES`, or any other error of open(2) and read(2); a text that is not UTF-8.
    pub fn read(file: Option<&Path>) -> Result<Template, String> {
        let Some(path) = file else {
            return Ok(Template {
                name: "the bundled script".to_owned(),
                text: BUNDLED.to_owned(),
            });
        };
        let name = format!("--rules {}", path.display());
        match std::fs::read_to_string(path) {
            Ok(text) => Ok(Template { name, text }),
            Err(error) => Err(format!("{name}: {}", words(&error))),
        }
    }
}

/// The values of a template's variables, for one family.
#[derive(Clone, Debug)]
pub struct Values {
    /// `${CIDRS}`: captured blocks of the family.
    pub cidrs: Vec<Cidr>,
    /// `${DPORTS}`: captured ports.
    pub dports: Vec<PortRange>,
    /// `${ON_IP}`: address of the listener.
    pub on_ip: IpAddr,
    /// `${ON_PORT}`: port of the listener, host order.
    pub on_port: u16,
    /// `${MARK}`, and `${NODE_MARK}` for packets that the node itself sends; a line with `${NODE_MARK}` is left
    /// out if these are not captured.
    pub marks: Marks,
}

/// A rendered line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Number of the line in the template, from 1.
    pub number: usize,
    /// The text, after substitution.
    pub text: String,
}

/// Substitutes the variables of a template. A line with a list longer than [`LONGEST_WORD`] or
/// [`MULTIPORT_SLOTS`] becomes several lines.
///
/// # Errors
/// An unknown variable, or a list that needs several lines in a line with the variable after `!` or twice.
pub fn render(template: &str, values: &Values) -> Result<Vec<Line>, ScriptError> {
    let cidr_length = |cidr: &Cidr| cidr.to_string().len() + 1;
    let cidr_lists = split_list(&values.cidrs, LONGEST_WORD, cidr_length);
    let dport_lists = split_list(&values.dports, MULTIPORT_SLOTS, PortRange::multiport_slots);
    let icmp = Protocol::icmp_of(Family::of(values.on_ip));
    let mut lines = Vec::new();
    let template = template.strip_suffix('\n').unwrap_or(template);
    for (number, text) in (1..).zip(template.split('\n')) {
        if text.starts_with('#') {
            let text = text.to_owned();
            lines.push(Line { number, text });
            continue;
        }
        let is_for_node = tokens(text).any(|token| token == "${NODE_MARK}");
        if is_for_node && values.marks.sent.is_none() {
            continue;
        }
        let refuse = |error: SyntaxError| error.at(number);
        for cidrs in lists_for(text, "${CIDRS}", &cidr_lists).map_err(refuse)? {
            for dports in lists_for(text, "${DPORTS}", &dport_lists).map_err(refuse)? {
                let text = tokens(text).map(|token| match token {
                    "${CIDRS}" => Ok(cidrs.clone()),
                    "${DPORTS}" => Ok(dports.clone()),
                    "${ON_IP}" => Ok(values.on_ip.to_string()),
                    "${ON_PORT}" => Ok(values.on_port.to_string()),
                    "${ICMP}" => Ok(icmp.name().to_owned()),
                    "${MARK}" => Ok(values.marks.received.to_string()),
                    "${NODE_MARK}" => Ok(values.marks.sent.map_or_else(String::new, |it| it.to_string())),
                    unknown if unknown.starts_with(VARIABLE) => Err(SyntaxError::new(
                        unknown,
                        "supported are ${CIDRS}, ${DPORTS}, ${ON_IP}, ${ON_PORT}, ${ICMP}, ${MARK} and ${NODE_MARK}",
                    )),
                    text => Ok(text.to_owned()),
                });
                let text = text.collect::<Result<_, _>>().map_err(refuse)?;
                lines.push(Line { number, text });
            }
        }
    }
    Ok(lines)
}

/// A single list, of no effect, for a line without the variable.
const UNUSED: &[String] = &[String::new()];

/// The lists that `variable` stands for, one for each rendered line.
fn lists_for<'v>(
    text: &str,
    variable: &str,
    lists: &'v [String],
) -> Result<&'v [String], SyntaxError> {
    let uses = tokens(text).filter(|token| *token == variable).count();
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let negated = words
        .windows(3)
        .any(|it| it[0] == "!" && it[2].contains(variable));
    match (uses, lists.len()) {
        (0, _) => Ok(UNUSED),
        (1, _) if !negated => Ok(lists),
        (_, 0..=1) => Ok(lists),
        _ => Err(SyntaxError::new(
            variable,
            "expected it once, and not after !, because the list needs several lines",
        )),
    }
}

/// Start of a variable.
const VARIABLE: &str = "${";

/// Splits a text into variables, each up to its `}`, and the text between them.
fn tokens(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let length = match rest.starts_with(VARIABLE) {
            true => rest.find('}').map_or(rest.len(), |end| end + 1),
            false => {
                let next = rest.char_indices().skip(1).find(|(_, c)| *c == '$');
                next.map_or(rest.len(), |(at, _)| at)
            }
        };
        let (token, after) = rest.split_at(length);
        rest = after;
        (!token.is_empty()).then_some(token)
    })
}

/// The rendered lines as text for iptables-restore.
pub fn text(lines: &[Line]) -> String {
    lines
        .iter()
        .flat_map(|line| [line.text.as_str(), "\n"])
        .collect()
}

/// Formats items as comma-separated lists, each with a total weight of at most `limit`.
fn split_list<T: fmt::Display>(
    items: &[T],
    limit: usize,
    weight: impl Fn(&T) -> usize,
) -> Vec<String> {
    let mut lists: Vec<String> = Vec::new();
    let mut space = 0;
    for item in items {
        match (lists.last_mut(), weight(item)) {
            (Some(list), weight) if weight <= space => {
                list.push_str(&format!(",{item}"));
                space -= weight;
            }
            (_, weight) => {
                lists.push(item.to_string());
                space = limit - weight;
            }
        }
    }
    lists
}
