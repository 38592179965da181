//! What the demo prints: one line for each thing that has come true, with the time that it took.

use std::{
    cell::Cell,
    io::{IsTerminal as _, Stdout, Write as _, stderr, stdout},
    time::Instant,
};

/// Wide enough for what most lines say; times stand to the right of it.
const WIDTH: usize = 74;

pub struct Telling {
    out: Stdout,
    coloured: bool,
    last: Cell<Instant>,
}

impl Telling {
    pub fn new() -> Self {
        let out = stdout();
        let coloured = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { out, coloured, last: Cell::new(Instant::now()) }
    }

    pub fn title(&self, title: &str, beside: &str) {
        self.line(&format!("{}  {}", self.paint("1", title), self.paint("2", beside)));
    }

    /// The beginning of a part.
    pub fn part(&self, mark: &str, what: &str) {
        self.line("");
        self.line(&format!("{}  {}", self.paint("1;36", mark), self.paint("1", what)));
    }

    /// Something has come true, and took the time since the last such line.
    pub fn done(&self, what: &str) {
        let took = self.last.replace(Instant::now()).elapsed().as_secs_f64();
        let gap = " ".repeat(WIDTH.saturating_sub(what.chars().count()));
        let took = self.paint("2", &format!("{took:>6.2} s"));
        self.line(&format!("  {} {what}{gap}{took}", self.paint("32", "✓")));
    }

    /// A detail of the line before.
    pub fn detail(&self, name: &str, value: &str) {
        self.line(&format!("      {} {value}", self.paint("2", &format!("{name:<14}"))));
    }

    /// The last line, if all was well.
    pub fn verdict(&self, what: &str) {
        self.line("");
        self.line(&self.paint("1;32", &format!("✓ {what}")));
    }

    pub fn failure(&self, error: &anyhow::Error) {
        let mut causes: Vec<_> = error.chain().map(ToString::to_string).collect();
        // The logs, put around the error, read better before it.
        if causes.len() > 1 && causes[0].contains("said last:") {
            let _ = writeln!(stderr(), "\n{}", causes.remove(0));
        }
        let coloured = self.coloured && stderr().is_terminal();
        let cross = if coloured { "\x1b[31m✗\x1b[0m" } else { "✗" };
        let _ = writeln!(stderr(), "\n{cross} the demo failed: {}", causes.join("\n    because: "));
        let _ = writeln!(
            stderr(),
            "  GREENSHIELD_TEST_KEEP=1 scripts/demo keeps the directories with the logs."
        );
    }

    /// Whoever reads may have gone: that stops nothing.
    pub fn line(&self, line: &str) {
        let mut out = self.out.lock();
        let _ = writeln!(out, "{line}");
        let _ = out.flush();
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
