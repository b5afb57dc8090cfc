//! SVG text as PNG, drawn by resvg with a font that is part of the program: a host need have none,
//! and the picture is the same wherever it is made.

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree};

/// Pixels for each unit of the picture: charts are 760 units wide, and read well at twice that on
/// screens of today and in print.
pub const SCALE: f32 = 2.0;
/// The family's name in the font.
const FAMILY: &str = "Noto Sans";

/// The bytes of a PNG.
///
/// # Errors
/// A sentence: the text is no SVG, or the picture is larger than memory takes.
pub fn png(svg: &str) -> Result<Vec<u8>, String> {
    let mut options = Options { font_family: FAMILY.to_owned(), ..Options::default() };
    let fonts = options.fontdb_mut();
    fonts.load_font_data(ttf_noto_sans::REGULAR.to_vec());
    fonts.load_font_data(ttf_noto_sans::BOLD.to_vec());
    fonts.set_sans_serif_family(FAMILY);
    let tree = Tree::from_str(svg, &options).map_err(|error| format!("drawing: {error}"))?;
    let size = tree.size().to_int_size().scale_by(SCALE);
    let size = size.ok_or("drawing: the picture has no size")?;
    let mut pixels = Pixmap::new(size.width(), size.height())
        .ok_or_else(|| format!("drawing: {} x {} is too large", size.width(), size.height()))?;
    resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| format!("drawing: {error}"))
}

#[cfg(test)]
mod tests {
    use super::super::svg::Svg;
    use super::*;

    /// Pixels that are darker than grey.
    fn dark(png: &[u8]) -> usize {
        let pixels = Pixmap::decode_png(png).unwrap();
        pixels.pixels().iter().filter(|pixel| pixel.red() < 128).count()
    }

    #[test]
    fn text_shows_without_a_font_on_the_host() {
        let empty = Svg::new(200.0, 50.0, "t", "d").finish();
        let mut svg = Svg::new(200.0, 50.0, "t", "d");
        svg.words("text", &[("x", 5.0.into()), ("y", 30.0.into())], "p99.9 ≤ 12 µs ± 3 − – … × ↓→");
        let [empty, words] = [empty, svg.finish()].map(|svg| png(&svg).unwrap());
        assert!(empty.starts_with(b"\x89PNG\r\n\x1a\n"));
        assert_eq!(dark(&empty), 0);
        assert!(dark(&words) > 400, "{}", dark(&words));
    }

    #[test]
    fn what_is_no_picture_is_said() {
        assert!(png("<svg").unwrap_err().starts_with("drawing: "));
    }
}
