//! How charts look: ink, type, and what tells one series from another.
//!
//! Colours are those of Okabe and Ito ("Color universal design", 2008), which people with any of
//! the common forms of colour blindness tell apart, the darkest first. Each has a dash and a marker
//! of its own, so that a print in black and white says as much.

/// Text and axes.
pub const INK: &str = "#1a1a1a";
/// What explains.
pub const QUIET: &str = "#5a5a5a";
/// Grid lines.
pub const GRID: &str = "#e2e2e2";
/// Axis lines.
pub const AXIS: &str = "#8a8a8a";
/// What is bad: outliers, limits that were crossed.
pub const ALARM: &str = "#b3261e";
/// Fonts that hosts have; all are sans-serif with figures of equal width.
pub const FONT: &str = "Helvetica Neue, Arial, Liberation Sans, DejaVu Sans, Noto Sans, sans-serif";
/// Of axis numbers and names of series.
pub const FONT_SIZE: f64 = 12.0;
/// Of the title.
pub const TITLE_SIZE: f64 = 15.0;
/// Of what stands under the title.
pub const SUBTITLE_SIZE: f64 = 12.0;

/// A series' look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Its colour.
    pub color: &'static str,
    /// Its line: lengths of strokes and gaps; empty is solid.
    pub dash: &'static str,
    /// Its marker.
    pub marker: Marker,
}

/// The shape of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    /// A filled disc.
    Disc,
    /// A hollow square.
    Square,
    /// A filled triangle.
    Triangle,
    /// A hollow disc.
    Ring,
    /// A filled diamond.
    Diamond,
    /// A cross.
    Cross,
    /// A plus sign.
    Plus,
}

const LOOKS: [Look; 7] = [
    Look { color: "#0072b2", dash: "", marker: Marker::Disc },
    Look { color: "#d55e00", dash: "7 3", marker: Marker::Square },
    Look { color: "#009e73", dash: "2 2.5", marker: Marker::Triangle },
    Look { color: "#000000", dash: "9 3 2 3", marker: Marker::Ring },
    Look { color: "#a8528a", dash: "12 4", marker: Marker::Diamond },
    Look { color: "#b27a00", dash: "4 2 1 2 1 2", marker: Marker::Cross },
    Look { color: "#3b8fc4", dash: "1 3", marker: Marker::Plus },
];

/// The look of the series with this number; past the seventh they come again, and the names beside
/// the lines tell them apart.
pub fn look(index: usize) -> Look {
    LOOKS[index % LOOKS.len()]
}

/// A shade for a share from 0 to 1, light to dark, and the ink that reads on it. Lightness falls
/// evenly, so that it reads in grey as well (between the ends of ColorBrewer's Blues).
pub fn shade(share: f64) -> (String, &'static str) {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let mix = |from: f64, to: f64| (from + (to - from) * share).round() as u8;
    let color =
        format!("#{:02x}{:02x}{:02x}", mix(240.0, 8.0), mix(246.0, 48.0), mix(252.0, 107.0));
    (color, if share > 0.5 { "#ffffff" } else { INK })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_differ_without_colour() {
        for (index, one) in LOOKS.iter().enumerate() {
            let same = |other: &Look| other.dash == one.dash || other.marker == one.marker;
            assert!(!LOOKS[..index].iter().any(same), "{one:?}");
        }
        assert_eq!(look(7), look(0));
    }

    #[test]
    fn shades_run_from_light_to_dark() {
        assert_eq!(shade(0.0), ("#f0f6fc".to_owned(), INK));
        assert_eq!(shade(2.0), ("#08306b".to_owned(), "#ffffff"));
        assert_eq!(shade(f64::NAN), shade(0.0));
    }
}
