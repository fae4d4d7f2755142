//! The modules of `src`: imports point down, no files import each other, and no file is long.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::imports::{Imports, imports};

/// Modules from top to bottom. A module may import those below it or beside it.
const LEVELS: [&[&str]; 7] = [
    &["main", "lib"],
    &["check", "options"],
    &["guard"],
    &["server"],
    &["nftables", "routing", "http"],
    &["rules", "netlink", "sandbox", "log"],
    &["selectors", "error", "lock", "sys"],
];

/// Most lines of a file.
const LONGEST: usize = 400;

/// Files of `src`, by their relative path.
fn sources() -> BTreeMap<String, String> {
    let mut sources = BTreeMap::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|it| it == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
                sources.insert(name.to_owned(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    sources
}

/// Module of a file: its directory, or the file itself.
fn module_of(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

fn level(file: &str) -> usize {
    let level = LEVELS.iter().position(|it| it.contains(&module_of(file)));
    level.unwrap_or_else(|| panic!("src/{file} has no place in LEVELS"))
}

fn modules(imports: &Imports) -> Imports {
    let modules = imports
        .iter()
        .map(|(from, to)| (module_of(from).to_owned(), module_of(to).to_owned()));
    modules.filter(|(from, to)| from != to).collect()
}

/// Shortest import cycle of each file, written from its least member; each cycle once.
fn cycles(imports: &Imports) -> BTreeSet<String> {
    let all: BTreeSet<_> = imports.iter().map(|(from, _)| from).collect();
    let cycles = all.into_iter().filter_map(|start| cycle(imports, start));
    cycles.collect()
}

fn cycle(imports: &Imports, start: &str) -> Option<String> {
    let mut paths = vec![vec![start]];
    let mut seen = BTreeSet::new();
    while !paths.is_empty() {
        let mut longer = Vec::new();
        for path in paths {
            for (_, next) in imports
                .iter()
                .filter(|(from, _)| from == path[path.len() - 1])
            {
                if next == start {
                    let least = path.iter().min().unwrap();
                    let at = path.iter().position(|it| it == least).unwrap();
                    let cycle = [&path[at..], &path[..=at]].concat();
                    return Some(cycle.join(" → "));
                }
                if seen.insert(next) {
                    longer.push([&path[..], &[next]].concat());
                }
            }
        }
        paths = longer;
    }
    None
}

/// Imports that point up.
fn upward(imports: &Imports) -> Vec<String> {
    let upward = imports.iter().filter(|(from, to)| level(to) < level(from));
    upward.map(|(from, to)| format!("{from} → {to}")).collect()
}

fn imports_of(files: &[(&str, &str)]) -> Imports {
    let files = files
        .iter()
        .map(|(file, text)| ((*file).to_owned(), (*text).to_owned()));
    imports(&files.collect())
}

fn pairs(imports: &Imports) -> Vec<String> {
    let pairs = imports.iter().map(|(from, to)| format!("{from} → {to}"));
    pairs.collect()
}

fn assert_none(what: &str, found: impl IntoIterator<Item = String>) {
    let found: Vec<_> = found.into_iter().collect();
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

#[test]
fn no_files_import_each_other() {
    assert_none("they import each other", cycles(&imports(&sources())));
}

#[test]
fn no_modules_import_each_other() {
    assert_none(
        "they import each other",
        cycles(&modules(&imports(&sources()))),
    );
}

#[test]
fn imports_point_down() {
    assert_none("these point up", upward(&imports(&sources())));
}

#[test]
fn no_file_is_long() {
    let sources = sources();
    let long = sources.iter().filter_map(|(file, text)| {
        let lines = text.lines().count();
        (lines > LONGEST).then(|| format!("{file}: {lines} lines"))
    });
    assert_none("more than 400 lines", long);
}

#[test]
fn every_form_of_an_import_is_found() {
    let declaration = "pub mod one;\npub mod two;\nmod three;\n";
    let forms = [
        ("use crate::server::one::Item;", "server/one.rs"),
        (
            "use crate::server::{GRACE, two::{self, Item as Other}};",
            "server/mod.rs server/two.rs",
        ),
        (
            "use crate::{error, server::{one::*}};",
            "error.rs server/one.rs",
        ),
        ("use super::one::Item;", "server/one.rs"),
        (
            "pub use super::{two::Item, Server};",
            "server/mod.rs server/two.rs",
        ),
        ("fn f() { crate::error::words(&0); }", "error.rs"),
        ("fn f() -> super::two::Item { self::g() }", "server/two.rs"),
        (
            "mod tests { use super::*; use super::super::one::Item; }",
            "server/one.rs",
        ),
        (
            "mod tests { fn f() {} } use super::one::Item;",
            "server/one.rs",
        ),
        (
            "// use crate::error::Error;\n/* crate::error /* nested */ crate::error::E */",
            "",
        ),
        (
            "const A: &str = \"crate::error::E\\\" crate::error::E\"; use std::error::Error;",
            "",
        ),
        (
            "const A: &str = r#\"\"crate::error::E\"#; const B: char = '\"'; pub(crate) fn f<'a>() {}",
            "",
        ),
    ];
    for (text, expected) in forms {
        let files = [
            ("server/mod.rs", declaration),
            ("server/one.rs", ""),
            ("server/two.rs", ""),
            ("server/three.rs", text),
            ("error.rs", ""),
        ];
        let found = imports_of(&files).into_iter().map(|(_, to)| to);
        let mut expected: Vec<_> = expected.split_whitespace().collect();
        expected.sort_unstable();
        assert_eq!(found.collect::<Vec<_>>(), expected, "{text}");
    }
}

#[test]
fn a_folder_imports_its_files_where_it_uses_them_and_the_binary_imports_the_library() {
    let found = imports_of(&[
        ("main.rs", "use tproxy_pod::server::{one, run};"),
        (
            "server/mod.rs",
            "pub mod one;\npub mod two;\nfn f() { one::g(); log::info!(); }",
        ),
        ("server/one.rs", ""),
        ("server/two.rs", ""),
        ("log.rs", ""),
    ]);
    let expected = [
        "main.rs → server/mod.rs",
        "main.rs → server/one.rs",
        "server/mod.rs → server/one.rs",
    ];
    assert_eq!(pairs(&found), expected);
}

#[test]
fn a_cycle_of_two_and_one_of_three_are_found() {
    let found = imports_of(&[
        ("http/head.rs", "use crate::http::fields::{Fields, field};"),
        (
            "http/fields.rs",
            "use crate::{error::Error, http::head::{Status, reject}};",
        ),
        ("rules/line.rs", "use crate::rules::rule::Rule;"),
        ("rules/rule.rs", "use crate::rules::values::Value;"),
        ("rules/values.rs", "fn f() -> crate::rules::line::Line {}"),
        ("error.rs", ""),
    ]);
    let expected = [
        "http/fields.rs → http/head.rs → http/fields.rs",
        "rules/line.rs → rules/rule.rs → rules/values.rs → rules/line.rs",
    ];
    assert!(cycles(&found).into_iter().eq(expected.map(str::to_owned)));
    assert_none("modules", cycles(&modules(&found)));
}

#[test]
fn an_import_that_points_up_and_modules_that_import_each_other_are_found() {
    let found = imports_of(&[
        (
            "routing/policy.rs",
            "use crate::nftables::batch::Batch;\nuse crate::guard::Guard;",
        ),
        ("nftables/table.rs", "use crate::routing::bridges::Bridges;"),
        ("nftables/batch.rs", ""),
        ("routing/bridges.rs", ""),
        ("guard/mod.rs", ""),
    ]);
    assert_eq!(upward(&found), ["routing/policy.rs → guard/mod.rs"]);
    assert_none("files", cycles(&found));
    assert!(cycles(&modules(&found)).contains("nftables → routing → nftables"));
}
