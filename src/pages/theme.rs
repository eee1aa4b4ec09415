//! From one colour that a tenant chose to those that a page needs, each readable where it is used: WCAG asks for a contrast
//! of 4.5 between a text and what is behind it.

/// The contrast that texts need.
const READABLE: f64 = 4.5;
/// The darkest surface of the light theme that coloured text stands on, and the lightest of the dark one.
const LIGHT_SURFACE: Color = Color(0xee, 0xee, 0xec);
const DARK_SURFACE: Color = Color(0x26, 0x29, 0x2d);
const WHITE: Color = Color(255, 255, 255);
const INK: Color = Color(0x16, 0x17, 0x1a);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Color(u8, u8, u8);

impl Color {
    /// `#rrggbb`.
    fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('#').filter(|digits| digits.len() == 6)?;
        let number = u32::from_str_radix(digits, 16).ok()?;
        let [_, red, green, blue] = number.to_be_bytes();
        Some(Self(red, green, blue))
    }

    fn luminance(self) -> f64 {
        let linear = |channel: u8| {
            let value = f64::from(channel) / 255.0;
            if value <= 0.040_45 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * linear(self.0) + 0.7152 * linear(self.1) + 0.0722 * linear(self.2)
    }

    fn contrast(self, other: Self) -> f64 {
        let (a, b) = (self.luminance(), other.luminance());
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    /// So many hundredths of the way to another colour.
    fn towards(self, other: Self, hundredths: u32) -> Self {
        let mix = |from: u8, to: u8| {
            let mixed = u32::from(from) * (100 - hundredths) + u32::from(to) * hundredths;
            u8::try_from(mixed / 100).unwrap_or(u8::MAX)
        };
        Self(mix(self.0, other.0), mix(self.1, other.1), mix(self.2, other.2))
    }

    /// The nearest on the way to `end` that is readable on `surface`.
    fn readable_on(self, surface: Self, end: Self) -> Self {
        (0..=100)
            .step_by(4)
            .map(|part| self.towards(end, part))
            .find(|it| it.contrast(surface) >= READABLE)
            .unwrap_or(end)
    }

    fn css(self) -> String {
        format!("#{:02x}{:02x}{:02x}", self.0, self.1, self.2)
    }
}

/// The colours and the typeface of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Theme {
    /// What buttons and questions are filled with.
    pub(super) fill: String,
    /// Text on it.
    pub(super) on_fill: String,
    /// Links and marks in the light theme.
    pub(super) accent_light: String,
    /// And in the dark one.
    pub(super) accent_dark: String,
    /// The list of fonts.
    pub(super) font: &'static str,
}

impl Theme {
    /// The theme of a colour and a typeface, whatever they are: what is unknown is shown as the plainest.
    pub(super) fn new(color: &str, font: &str) -> Self {
        let color = Color::parse(color).unwrap_or(Color(0x3a, 0x4a, 0x5a));
        // A colour in the middle carries neither white nor black; a little darker it carries white.
        let (fill, on_fill) = if color.contrast(WHITE) >= READABLE {
            (color, WHITE)
        } else if color.contrast(INK) >= READABLE + 2.0 {
            (color, INK)
        } else {
            (color.readable_on(WHITE, INK), WHITE)
        };
        Self {
            fill: fill.css(),
            on_fill: on_fill.css(),
            accent_light: color.readable_on(LIGHT_SURFACE, Color(0, 0, 0)).css(),
            accent_dark: color.readable_on(DARK_SURFACE, WHITE).css(),
            font: stack(font),
        }
    }

    /// The page's own style: nothing but these values, none of which anybody typed.
    pub(super) fn css(&self) -> String {
        let Self { fill, on_fill, accent_light, accent_dark, font } = self;
        format!(
            ":root{{--brand:{fill};--on-brand:{on_fill};--accent-light:{accent_light};--accent-dark:{accent_dark};\
             --font:{font}}}"
        )
    }
}

/// Fonts that devices have. None is loaded from anywhere.
fn stack(font: &str) -> &'static str {
    match font {
        "humanist" => "Seravek,'Gill Sans Nova',Ubuntu,Calibri,'DejaVu Sans',source-sans-pro,sans-serif",
        "serif" => "Charter,'Bitstream Charter','Sitka Text',Cambria,Georgia,'DejaVu Serif',serif",
        "rounded" => {
            "ui-rounded,'Hiragino Maru Gothic ProN',Quicksand,Comfortaa,Manjari,'Arial Rounded MT Bold',Calibri,sans-serif"
        }
        "slab" => "Rockwell,'Rockwell Nova','Roboto Slab','DejaVu Serif','Sitka Small',serif",
        _ => {
            "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue','Noto Sans','Liberation Sans',Arial,sans-serif"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_colour_gives_readable_pages() {
        let color = |text: &str| Color::parse(text).unwrap();
        let steps = [0, 0x33, 0x66, 0x99, 0xc4, 0xff];
        for red in steps {
            for green in steps {
                for blue in steps {
                    let chosen = Color(red, green, blue).css();
                    let theme = Theme::new(&chosen, "system");
                    assert!(color(&theme.fill).contrast(color(&theme.on_fill)) >= READABLE, "{chosen}");
                    assert!(color(&theme.accent_light).contrast(LIGHT_SURFACE) >= READABLE, "{chosen}");
                    assert!(color(&theme.accent_dark).contrast(DARK_SURFACE) >= READABLE, "{chosen}");
                }
            }
        }
    }

    #[test]
    fn nothing_that_was_typed_gets_into_the_style() {
        let plain = Theme::new("#3a4a5a", "system");
        for hostile in ["red;}body{display:none", "#12345", "#12345g", "</style><script>", "", "#1234567"] {
            assert_eq!(Theme::new(hostile, hostile), plain, "{hostile}");
        }
        assert_eq!(Theme::new("#1D7A6B", "serif").fill, "#1d7a6b");
    }
}
