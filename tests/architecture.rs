//! The shape of the source, proved from its text: who may import whom, where a library may appear,
//! and how long a file may get.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Modules from the bottom up. A file imports from lines below its own, or from its own module; what
/// stands on one line never imports each other.
const LAYERS: [&[&str]; 9] = [
    &["model", "yaml"],
    &["clock", "config", "registration", "secret", "telemetry"],
    &["store", "homeserver"],
    &["crypto"],
    &["worker", "web"],
    &["appservice", "operator", "responder", "signup"],
    &["openapi"],
    &["app"],
    &["cli"],
];

/// Edges turn requests into rows and rows into responses: the engine is not theirs to call.
const EDGES: &[&str] = &["appservice", "operator", "responder", "signup"];
const NOT_FOR_EDGES: &[&str] = &["worker", "crypto", "homeserver"];

/// Libraries, and the modules in which they may appear.
const LIBRARIES: [(&str, &[&str]); 5] = [
    ("sqlx", &["store"]),
    ("reqwest", &["homeserver"]),
    ("axum", &["web", "appservice", "operator", "signup", "app"]),
    ("matrix_sdk_crypto", &["crypto", "worker", "store"]),
    ("clap", &["cli"]),
];

/// What one can hold in the head.
const LONGEST: usize = 420;

struct Source {
    path: PathBuf,
    module: String,
    /// Without comments, so that a link in a doc comment is no import.
    code: String,
    lines: usize,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<Source> {
    let mut found = Vec::new();
    collect(&root(), &mut found);
    assert!(found.len() > 50, "the source was not found: {}", found.len());
    found
}

fn collect(folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).expect("readable source");
            let relative = path.strip_prefix(root()).expect("below src").to_owned();
            let first = relative.components().next().expect("a name");
            let module = Path::new(&first).with_extension("").display().to_string();
            let code: Vec<&str> =
                text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
            let (code, lines) = (code.join("\n"), text.lines().count());
            found.push(Source { path: relative, module, code, lines });
        }
    }
}

/// Every `crate::name` in the code, grouped imports included.
fn imports(code: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            names.extend(group_heads(group));
        } else {
            names.insert(head(rest));
        }
    }
    names
}

fn head(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The first names of a `{a, b::{c, d}, e}` whose opening brace is gone.
fn group_heads(group: &str) -> Vec<String> {
    let (mut names, mut depth, mut expecting) = (Vec::new(), 0_i32, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => expecting = true,
            c if c.is_alphabetic() && expecting => {
                names.push(head(&group[at..]));
                expecting = false;
            }
            _ => {}
        }
    }
    names
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|modules| modules.contains(&module))
}

#[test]
fn every_module_has_its_layer() {
    for source in sources() {
        let known = layer(&source.module).is_some() || ["lib", "main"].contains(&&*source.module);
        assert!(known, "{} is in no layer: add its module to LAYERS", source.path.display());
    }
}

#[test]
fn files_import_only_from_below() {
    for source in sources() {
        let Some(own) = layer(&source.module) else { continue };
        for name in imports(&source.code).into_iter().filter(|name| *name != source.module) {
            let Some(other) = layer(&name) else { continue };
            assert!(
                other < own,
                "{} imports `{name}`, which is not below `{}`",
                source.path.display(),
                source.module
            );
        }
    }
}

#[test]
fn edges_speak_to_the_engine_through_rows_only() {
    for source in sources().iter().filter(|s| EDGES.contains(&s.module.as_str())) {
        for name in imports(&source.code) {
            assert!(
                !NOT_FOR_EDGES.contains(&name.as_str()),
                "{} imports `{name}`: write a row, and let a worker do it",
                source.path.display()
            );
        }
    }
}

#[test]
fn cryptography_has_no_sockets() {
    for source in sources().iter().filter(|s| s.module == "crypto") {
        let names = imports(&source.code);
        assert!(!names.contains("homeserver"), "{} imports `homeserver`", source.path.display());
        assert!(!source.code.contains("tokio::net"), "{}", source.path.display());
    }
}

#[test]
fn libraries_stay_where_they_belong() {
    for source in sources() {
        for (library, homes) in LIBRARIES {
            let used = source.code.contains(&format!("{library}::"));
            assert!(
                !used || homes.contains(&source.module.as_str()),
                "{} uses {library}, whose place is {homes:?}",
                source.path.display()
            );
        }
    }
}

#[test]
fn files_stay_small() {
    for source in sources() {
        assert!(
            source.lines <= LONGEST,
            "{} has {} lines: let a folder take its name",
            source.path.display(),
            source.lines
        );
    }
}

#[test]
fn imports_are_found_in_groups_and_alone() {
    let code = "use crate::{\n a::{b, c},\n d, e::f,\n};\nlet x = crate::g::h();";
    let found: Vec<_> = imports(code).into_iter().collect();
    assert_eq!(found, ["a", "d", "e", "g"]);
}
