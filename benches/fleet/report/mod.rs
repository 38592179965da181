//! The page: what was measured, beside what was aimed at.

mod figures;
mod page;
mod plot;

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use crate::results::Results;

/// Writes the page and its plot. What people wrote between the page's markers stays.
pub fn write(results: &Path, hot: Option<&Path>, page: &Path, picture: &Path) -> Result<()> {
    let results = Results::read(results).context("the results of a run")?;
    let old = fs::read_to_string(page).unwrap_or_default();
    let picture_name = picture.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let rows = figures::rows(&results, hot);
    fs::write(page, page::render(&results, &rows, &old, picture_name))?;
    plot::draw(&results, picture)
}
