//! Curves as SVG: logarithmic to the right, linear upwards from zero.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

const SIZE: (u32, u32) = (720, 400);

/// A picture.
pub(super) struct Chart {
    /// The file's name without its end.
    pub(super) file: &'static str,
    pub(super) title: String,
    /// What is to the right.
    pub(super) x: &'static str,
    /// What is upwards.
    pub(super) y: &'static str,
    pub(super) series: Vec<Series>,
}

/// A curve.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

impl Chart {
    /// The picture's text.
    ///
    /// # Errors
    /// It cannot be drawn.
    pub(super) fn svg(&self) -> Result<String> {
        let mut text = String::new();
        self.draw(&mut text).map_err(|error| anyhow!("cannot draw {}: {error}", self.file))?;
        Ok(text)
    }

    fn draw(&self, text: &mut String) -> Result<(), Box<dyn std::error::Error + '_>> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let right = points().map(|point| point.0).fold(1.0, f64::max);
        let top = points().map(|point| point.1).fold(0.0, f64::max);
        let root = SVGBackend::with_string(text, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d((1.0..right * 1.1).log_scale(), 0.0..top * 1.3)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&|value| grouped(*value))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (number, series) in self.series.iter().enumerate() {
            let color = Palette99::pick(number).to_rgba();
            chart
                .draw_series(
                    LineSeries::new(series.points.iter().copied(), color.stroke_width(2)).point_size(3),
                )?
                .label(&series.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .draw()?;
        root.present()?;
        Ok(())
    }
}

/// A whole number with its thousands apart.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (number, digit) in digits.chars().enumerate() {
        if number > 0 && (digits.len() - number).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_apart() {
        assert_eq!(["7", "4,096", "10,000,000"], [7.0, 4096.0, 1e7].map(grouped)[..]);
    }

    #[test]
    fn every_curve_is_in_the_picture_with_its_name() {
        let series =
            |name: &str, y| Series { name: name.to_owned(), points: vec![(1.0, y), (4096.0, 2.0 * y)] };
        let chart = Chart {
            file: "services",
            title: "A packet against services".to_owned(),
            x: "services",
            y: "ns a packet",
            series: vec![series("one flow", 8.0), series("4,096 flows", 20.0)],
        };
        let svg = chart.svg().expect("it can be drawn");
        for text in ["<svg", "A packet against services", "one flow", "4,096 flows", "ns a packet"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        assert_eq!(svg.matches("<circle").count(), 4, "two curves of two points");
    }
}
