//! Finds which files of `src` import which. It reads tokens: `use` declarations, and paths that start with
//! `crate`, `super`, `self` or a child module. Comments, strings and `mod x;` are not imports. Paths that a
//! macro builds are not found.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;

/// Pairs of files: the first imports the second.
pub type Imports = BTreeSet<(String, String)>;

/// The library's name in the binary.
const LIBRARY: &str = "tproxy_pod";
/// Component of a module's path for an inline module.
const INLINE: &str = "{}";

/// Imports between files, given as paths relative to `src` and texts.
pub fn imports(sources: &BTreeMap<String, String>) -> Imports {
    let modules: BTreeMap<_, _> = sources.keys().map(|file| (module(file), file)).collect();
    let mut imports = Imports::new();
    for (file, text) in sources {
        for path in paths(file, text) {
            let known = (0..=path.len())
                .rev()
                .find_map(|end| modules.get(&path[..end]));
            if let Some(imported) = known.filter(|imported| **imported != file) {
                imports.insert((file.clone(), (*imported).clone()));
            }
        }
    }
    imports
}

/// Module path of a file: `server/mod.rs` is `[server]`, `lib.rs` is `[]`, the binary `[main]`.
fn module(file: &str) -> Vec<&str> {
    let path = file.strip_suffix(".rs").unwrap();
    let path = path.strip_suffix("/mod").unwrap_or(path);
    match path {
        "lib" => vec![],
        path => path.split('/').collect(),
    }
}

/// Absolute paths that a file uses.
fn paths<'s>(file: &'s str, text: &'s str) -> Vec<Vec<&'s str>> {
    let tokens = tokens(text);
    let children = children(&tokens);
    let mut current = module(file);
    // Depth of braces at which each inline module starts.
    let mut inline = Vec::new();
    let mut depth = 0;
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let used = match tokens[at..] {
            ["mod", _, "{", ..] => {
                inline.push(depth);
                current.push(INLINE);
                vec![]
            }
            ["use", ..] => {
                let length = tokens[at..].iter().take_while(|it| **it != ";").count();
                let declaration = &tokens[at + 1..at + length];
                at += length;
                use_paths(declaration)
            }
            [_, "::", ..] if at == 0 || tokens[at - 1] != "::" => vec![path(&tokens[at..])],
            _ => vec![],
        };
        let absolute = used
            .into_iter()
            .filter_map(|path| resolve(path, &current, &children));
        paths.extend(absolute);
        match tokens.get(at) {
            Some(&"{") => depth += 1,
            Some(&"}") => {
                depth -= 1;
                if inline.pop_if(|began| *began == depth).is_some() {
                    current.pop();
                }
            }
            _ => {}
        }
        at += 1;
    }
    paths
}

/// Child modules with a file.
fn children<'s>(tokens: &[&'s str]) -> BTreeSet<&'s str> {
    let declarations = tokens.windows(3);
    declarations
        .filter_map(|it| match it {
            ["mod", name, ";"] => Some(*name),
            _ => None,
        })
        .collect()
}

/// The path at the start of tokens: `a :: b :: c`.
fn path<'s>(tokens: &[&'s str]) -> Vec<&'s str> {
    let rest = tokens[1..].chunks(2).take_while(|it| it[0] == "::");
    iter::once(tokens[0])
        .chain(rest.filter_map(|it| it.get(1).copied()))
        .collect()
}

/// Paths of a `use` declaration, without groups: `a::{b, c::{d, e}}` is `a::b a::c::d a::c::e`.
fn use_paths<'s>(declaration: &[&'s str]) -> Vec<Vec<&'s str>> {
    let mut paths = Vec::new();
    let mut path = Vec::new();
    let mut groups = Vec::new();
    let mut is_complete = false;
    let mut tokens = declaration.iter().chain(iter::once(&","));
    while let Some(&token) = tokens.next() {
        match token {
            "::" => {}
            "as" => drop(tokens.next()),
            "{" => {
                groups.push(path.len());
                is_complete = false;
            }
            "," | "}" => {
                if is_complete {
                    paths.push(path.clone());
                }
                path.truncate(groups.last().copied().unwrap_or(0));
                is_complete = false;
                if token == "}" {
                    groups.pop();
                }
            }
            name => {
                path.push(name);
                is_complete = true;
            }
        }
    }
    paths
}

/// Absolute form of a path, if it is within the crate.
fn resolve<'s>(
    path: Vec<&'s str>,
    current: &[&'s str],
    children: &BTreeSet<&str>,
) -> Option<Vec<&'s str>> {
    let supers = path.iter().take_while(|it| **it == "super").count();
    let (base, rest) = match path[0] {
        "crate" if current.first() == Some(&"main") => (&current[..1], &path[1..]),
        "crate" => (&current[..0], &path[1..]),
        LIBRARY if current.first() == Some(&"main") => (&current[..0], &path[1..]),
        "self" => (current, &path[1..]),
        "super" => (
            &current[..current.len().checked_sub(supers)?],
            &path[supers..],
        ),
        child if children.contains(child) => (current, &path[..]),
        _ => return None,
    };
    Some([base, rest].concat())
}

/// Words, `::` and single characters, without comments, strings and lifetimes.
fn tokens(text: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = length(rest, |it| it.is_alphanumeric() || it == '_');
        let length = match first {
            '/' if rest.starts_with("//") => length(rest, |it| it != '\n'),
            '/' if rest.starts_with("/*") => comment(rest),
            '"' => string(rest),
            '\'' => character(rest),
            'r' | 'b' | 'c' if raw_string(rest) > 0 => raw_string(rest),
            _ if word > 0 => {
                tokens.push(&rest[..word]);
                word
            }
            _ if first.is_whitespace() => first.len_utf8(),
            _ => {
                let length = if rest.starts_with("::") {
                    2
                } else {
                    first.len_utf8()
                };
                tokens.push(&rest[..length]);
                length
            }
        };
        rest = &rest[length..];
    }
    tokens
}

fn length(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|it| !belongs(it)).unwrap_or(text.len())
}

/// Length of a block comment, which may be nested.
fn comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    loop {
        match text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 || at == text.len() {
            return at;
        }
    }
}

/// Length of a string literal.
fn string(text: &str) -> usize {
    let mut is_escaped = false;
    let end = text[1..].find(|it| {
        let is_end = it == '"' && !is_escaped;
        is_escaped = it == '\\' && !is_escaped;
        is_end
    });
    1 + end.expect("a string has an end") + 1
}

/// Length of a raw string literal, 0 if there is none.
fn raw_string(text: &str) -> usize {
    let prefix = length(text, |it| "rbc".contains(it));
    let hashes = length(&text[prefix..], |it| it == '#');
    let start = prefix + hashes + 1;
    if !text[..prefix].ends_with('r') || !text[prefix + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    start + text[start..].find(&end).expect("a raw string has an end") + end.len()
}

/// Length of a character literal; of a lifetime only its quote.
fn character(text: &str) -> usize {
    let mut characters = text.char_indices().skip(1);
    let (_, first) = characters.next().unwrap();
    let (second, next) = characters.next().unwrap();
    match (first, next) {
        ('\\', _) => {
            second + next.len_utf8() + text[second + next.len_utf8()..].find('\'').unwrap() + 1
        }
        (_, '\'') => second + 1,
        _ => 1,
    }
}
