//! The README says what the program says.

use tproxy_pod::options::HELP;
use tproxy_pod::template::BUNDLED;

const README: &str = include_str!("../README.md");

#[test]
fn every_option_of_the_help_text_has_its_row() {
    let options = HELP
        .lines()
        .filter(|line| line.starts_with("  ") && line.contains("--") && !line.contains("--help"));
    for line in options {
        let mut cells = line.split("  ").map(str::trim).filter(|it| !it.is_empty());
        let option = cells.next().unwrap().replace('|', "\\|");
        let meaning = cells.next().unwrap();
        let default = cells.next().map_or(String::new(), |default| {
            format!("`{}` ", default.trim_matches(['[', ']']))
        });
        let row = format!("| `{option}` | {meaning} | {default}|\n");
        assert!(README.contains(&row), "{row}");
    }
}

#[test]
fn the_bundled_script_is_shown_as_it_is() {
    for line in BUNDLED.lines().filter(|line| !line.starts_with('#')) {
        assert!(README.contains(&format!("    {line}\n")), "{line}");
    }
}
