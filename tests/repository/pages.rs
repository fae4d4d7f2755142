//! README.md, docs/, CONTRIBUTING.md and SECURITY.md agree with the program, and their links exist.

use tproxy_pod::options::HELP;
use tproxy_pod::rules::template::BUNDLED;

const README: &str = include_str!("../../README.md");
const RULES: &str = include_str!("../../docs/rules.md");
/// Every page, by its path.
const PAGES: [(&str, &str); 10] = [
    ("README.md", README),
    ("CONTRIBUTING.md", include_str!("../../CONTRIBUTING.md")),
    ("SECURITY.md", include_str!("../../SECURITY.md")),
    (
        "docs/architecture.md",
        include_str!("../../docs/architecture.md"),
    ),
    ("docs/captured.md", include_str!("../../docs/captured.md")),
    ("docs/http.md", include_str!("../../docs/http.md")),
    (
        "docs/kubernetes.md",
        include_str!("../../docs/kubernetes.md"),
    ),
    (
        "docs/operations.md",
        include_str!("../../docs/operations.md"),
    ),
    (
        "docs/performance.md",
        include_str!("../../docs/performance.md"),
    ),
    ("docs/rules.md", RULES),
];

/// Rows of the options table for a line of the help text; the last line has two, without descriptions.
fn rows(line: &str) -> Vec<String> {
    let cells = line.split("  ").map(str::trim).filter(|it| !it.is_empty());
    let row = |option: &str, meaning, default: &str| {
        let option = option.replace('|', "\\|");
        format!("| `{option}` | {meaning} | {default}|")
    };
    match *cells.collect::<Vec<_>>() {
        [help @ "-h, --help", version @ "-V, --version"] => vec![
            row(help, "print the options, and exit", ""),
            row(version, "print the version, and exit", ""),
        ],
        [option, meaning] => vec![row(option, meaning, "")],
        [option, meaning, default] => {
            let default = default.trim_matches(['[', ']']);
            vec![row(option, meaning, &format!("`{default}` "))]
        }
        _ => panic!("{line:?}"),
    }
}

#[test]
fn the_options_are_those_of_the_help_text() {
    let (_, table) = README
        .split_once("| option | meaning | default |\n|---|---|---|\n")
        .unwrap();
    let table = table.lines().take_while(|line| line.starts_with('|'));
    let expected = HELP.lines().filter(|line| line.starts_with("  "));
    assert_eq!(
        table.collect::<Vec<_>>(),
        expected.flat_map(rows).collect::<Vec<_>>()
    );
}

#[test]
fn the_bundled_script_is_shown_as_it_is() {
    let lines = BUNDLED.lines().filter(|line| !line.starts_with('#'));
    let shown: String = lines.map(|line| format!("    {line}\n")).collect();
    assert!(RULES.contains(&format!("\n\n{shown}\n")), "{shown}");
}

#[test]
fn every_file_and_every_test_that_is_named_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut named = 0;
    let lines = PAGES
        .iter()
        .flat_map(|(page, text)| text.lines().map(move |line| (*page, line)));
    for (page, line) in lines {
        let mut file = String::new();
        // The text after a link to a file, up to the next link, names tests of that file.
        for part in line.split("](").skip(1) {
            let (path, rest) = part.split_once(')').unwrap();
            let path = path.split('#').next().unwrap();
            if path.is_empty() || path.starts_with("https:") {
                continue;
            }
            let path = root.join(page).with_file_name(path);
            assert!(path.exists(), "{}", path.display());
            if path.extension().is_some_and(|it| it == "rs") {
                file = std::fs::read_to_string(path).unwrap();
            }
            for name in rest
                .split('`')
                .skip(1)
                .step_by(2)
                .filter(|it| it.contains('_'))
            {
                assert!(file.contains(&format!("fn {name}()")), "{name}");
                named += 1;
            }
        }
    }
    assert!(named > 5, "{named} tests are named");
}
