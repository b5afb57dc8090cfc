//! Charts: data in, SVG text out. Pure; no script, no font and no network is needed to read them.
//!
//! ```text
//! percentiles cdf timeline tradeoff scaling     what is drawn, and how it is to be read
//! plot  forest  heat                            lines over two axes; intervals by row; a grid
//! axis  (scale, ticks)  style  text             how numbers become places, colours and words
//! svg                                           elements, escaped, with numbers that are numbers
//! ```
//!
//! What holds for all of them: each axis names its unit; a series is told apart by its dash and
//! marker as well as by its colour, and its name stands beside it; what is not finite is left out;
//! nothing to draw is said in the chart's place.

pub mod axis;
pub mod draw;
pub mod forest;
pub mod heat;
pub mod plot;
#[cfg(feature = "png")]
pub mod png;
pub mod shapes;
pub mod style;
pub mod svg;
pub mod text;
