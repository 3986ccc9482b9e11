//! Plain text tables: columns, no borders.

use comfy_table::{CellAlignment, Table, presets::NOTHING};

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Lays out rows under headings, two spaces apart, without trailing blanks. Ends with a newline.
#[must_use]
pub fn render(columns: &[(&str, Align)], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(columns.iter().map(|(heading, _)| *heading));
    table.add_rows(rows);
    let last = columns.len().saturating_sub(1);
    for (index, (_, align)) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_padding((0, if index == last { 0 } else { 2 }));
            if *align == Align::Right {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    format!("{}\n", table.trim_fmt())
}

/// Marks words that matter with ANSI colours: for terminals only.
#[must_use]
pub fn paint(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for part in text.split_inclusive([' ', '\n']) {
        let word = part.trim_end_matches([' ', '\n']);
        let colour = match word {
            "down" | "fail" => 31,
            "drain" | "halt" | "unknown" | "warn" => 33,
            "up" | "ok" => 32,
            _ => {
                out.push_str(part);
                continue;
            }
        };
        out.push_str(&format!("\x1b[{colour}m{word}\x1b[0m{}", &part[word.len()..]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_without_borders_or_trailing_blanks() {
        let text = render(
            &[("NAME", Align::Left), ("N", Align::Right), ("WHY", Align::Left)],
            [
                vec!["one".to_owned(), "5".to_owned(), String::new()],
                vec!["seventeen".to_owned(), "1000".to_owned(), "so".to_owned()],
            ],
        );
        assert_eq!(
            text,
            "NAME          N  WHY\n\
             one           5\n\
             seventeen  1000  so\n"
        );
    }

    #[test]
    fn paint_colours_whole_words_and_changes_nothing_else() {
        assert_eq!(paint("a down\nupper  up"), "a \x1b[31mdown\x1b[0m\nupper  \x1b[32mup\x1b[0m");
    }
}
