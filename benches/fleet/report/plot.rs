//! The picture: cost against fleet size, beside the ceiling.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::results::{Results, number};

const SIZE: (u32, u32) = (960, 420);
const GREEN: RGBColor = RGBColor(0, 121, 82);
const GREY: RGBColor = RGBColor(110, 110, 120);

type Panel<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// What one half of the picture shows.
struct Curve {
    title: &'static str,
    figure: &'static str,
}

const CURVES: [Curve; 2] = [
    Curve { title: "Processor time per answer (ms), Postgres included", figure: "cpu_ms" },
    Curve { title: "Memory of the process, idle after start (MiB)", figure: "idle_rss_mib" },
];

/// Writes the picture, if growth was measured.
pub fn draw(results: &Results, picture: &Path) -> Result<()> {
    if !results.records.iter().any(|record| record.scenario == "sizes") {
        return Ok(());
    }
    let area = SVGBackend::new(picture, SIZE).into_drawing_area();
    let wrong = |error: &dyn std::fmt::Display| anyhow!("the picture: {error}");
    area.fill(&WHITE).map_err(|error| wrong(&error))?;
    for (panel, curve) in area.split_evenly((1, 2)).iter().zip(&CURVES) {
        curve.draw(panel, results).map_err(|error| wrong(&error))?;
    }
    area.present().map_err(|error| wrong(&error))
}

impl Curve {
    fn draw(&self, panel: &Panel<'_>, results: &Results) -> Result<(), Box<dyn std::error::Error>> {
        let points = |contestant: &str| -> Vec<(f64, f64)> {
            let records = results
                .records
                .iter()
                .filter(|record| record.scenario == "sizes" && record.contestant == contestant);
            records
                .filter_map(|record| Some((number(record.bots), *record.figures.get(self.figure)?)))
                .collect()
        };
        let (ours, ceiling) = (points("greenshield"), points("ceiling"));
        let all = || ours.iter().chain(&ceiling);
        let right = all().map(|(bots, _)| *bots).fold(10.0, f64::max);
        let top = all().map(|(_, cost)| *cost).fold(0.0, f64::max) * 1.4;
        let mut chart = ChartBuilder::on(panel)
            .caption(self.title, ("sans-serif", 17))
            .margin(14)
            .x_label_area_size(40)
            .y_label_area_size(48)
            .build_cartesian_2d((0.8..right * 1.4).log_scale(), 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("bots in the fleet")
            .x_label_formatter(&|bots| format!("{bots:.0}"))
            .y_label_formatter(&|cost| {
                if top < 5.0 { format!("{cost:.1}") } else { format!("{cost:.0}") }
            })
            .draw()?;
        for (says, points, color) in [
            ("greenshield, all committed", ours, GREEN),
            ("ceiling, nothing stored", ceiling, GREY),
        ] {
            chart
                .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?
                .label(says)
                .legend(move |(x, y)| {
                    Rectangle::new([(x, y - 4), (x + 14, y + 4)], color.filled())
                });
            let dots = points.into_iter().map(|point| Circle::new(point, 4, color.filled()));
            chart.draw_series(dots)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .draw()?;
        Ok(())
    }
}
