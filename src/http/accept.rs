//! The Accept field (RFC 9110, 12.5.1): whether a client prefers the echo as JSON. Parameters of a media range, such as
//! `charset`, make no difference.

use crate::http::syntax::split_unquoted;

/// What the Accept fields of a request say of the two media types of an echo.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Accept {
    json: Preference,
    text: Preference,
}

/// The most specific media range that a media type matches, and its weight. Of two that are equally specific, the
/// one with the greater weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    precision: Precision,
    /// In thousandths.
    weight: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Precision {
    /// No range matches.
    #[default]
    None,
    /// `*/*`
    Any,
    /// `type/*`
    Type,
    /// `type/subtype`
    Subtype,
}

impl Accept {
    /// Adds a field line. A member that is malformed is ignored.
    pub(super) fn add(&mut self, value: &[u8]) {
        for member in split_unquoted(value, b',') {
            let mut parts = split_unquoted(member, b';').map(<[u8]>::trim_ascii);
            let range = parts.next().unwrap_or_default();
            let Some(weight) = parts.find_map(weight).unwrap_or(Some(1000)) else {
                continue;
            };
            let is = |name: &[u8]| range.eq_ignore_ascii_case(name);
            let mut set = |precision, for_json, for_text| {
                let preference = Preference { precision, weight };
                if for_json {
                    self.json = self.json.max(preference);
                }
                if for_text {
                    self.text = self.text.max(preference);
                }
            };
            match range {
                b"*/*" => set(Precision::Any, true, true),
                _ if is(b"application/json") => set(Precision::Subtype, true, false),
                _ if is(b"application/*") => set(Precision::Type, true, false),
                _ if is(b"text/plain") => set(Precision::Subtype, false, true),
                _ if is(b"text/*") => set(Precision::Type, false, true),
                _ => {}
            }
        }
    }

    /// Whether `application/json` is preferred to `text/plain`. If both are alike, text is sent.
    pub(super) fn prefers_json(self) -> bool {
        self.json.weight > self.text.weight
    }
}

/// Whether the Accept fields of a request prefer JSON, however malformed it is otherwise.
pub(super) fn prefers_json(request: &[u8]) -> bool {
    let mut accept = Accept::default();
    let lines = request.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    // An empty line may precede the request.
    for line in lines.skip(1).take_while(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_at_checked(b"accept:".len())
            && name.eq_ignore_ascii_case(b"accept:")
        {
            accept.add(value);
        }
    }
    accept.prefers_json()
}

/// The weight that a parameter gives in thousandths, if its name is `q`: `Some(None)` if it is malformed (RFC 9110,
/// 12.4.2).
fn weight(parameter: &[u8]) -> Option<Option<u16>> {
    let equals = parameter.iter().position(|byte| *byte == b'=')?;
    let (name, value) = (&parameter[..equals], &parameter[equals + 1..]);
    if !name.trim_ascii().eq_ignore_ascii_case(b"q") {
        return None;
    }
    if name.len() > 1 {
        return Some(None);
    }
    let [whole @ (b'0' | b'1'), fraction @ ..] = value else {
        return Some(None);
    };
    let digits = match fraction {
        [] => fraction,
        [b'.', digits @ ..] if digits.len() <= 3 => digits,
        _ => return Some(None),
    };
    if !digits.iter().all(u8::is_ascii_digit) {
        return Some(None);
    }
    let digit = |at: usize| digits.get(at).map_or(0, |digit| u16::from(digit - b'0'));
    let weight = 1000 * u16::from(whole - b'0') + 100 * digit(0) + 10 * digit(1) + digit(2);
    Some(Some(weight).filter(|weight| *weight <= 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefers_json(values: &[&str]) -> bool {
        let mut accept = Accept::default();
        values.iter().for_each(|it| accept.add(it.as_bytes()));
        accept.prefers_json()
    }

    #[test]
    fn json_is_sent_where_its_weight_is_the_greater() {
        for value in [
            "application/json",
            "APPLICATION/JSON ; charset=utf-8",
            "application/*",
            "application/json, text/plain;q=0.9",
            "text/plain;q=0.5, application/json;q=0.501",
            "text/html, application/json;q=0.1",
            "application/json, */*;q=0.8",
            "application/json, text/*;q=0.3, */*",
            "text/plain;q=0, */*",
            "application/json;x=\"a,b;q=0\";q=0.5",
            ", ,application/json,",
            "*/*;q=0.1, application/json;q=0.2",
        ] {
            assert!(prefers_json(&[value]), "{value}");
        }
    }

    #[test]
    fn text_is_sent_otherwise() {
        for value in [
            "",
            "*/*",
            "text/html,application/xhtml+xml,*/*;q=0.8",
            "application/json, text/plain, */*",
            "application/json, */*",
            "application/json;q=0",
            "application/json;q=0.4, text/plain;q=0.5",
            "application/json;q=0, application/*, */*;q=0.1",
            "application/json;q=2",
            "application/json;q =0",
            "application/json; q= 0.5",
            "application/json;q=0.1234",
            "application/json;q=1.001",
            "application/json;q=",
            "image/png",
            "x\"application/json",
        ] {
            assert!(!prefers_json(&[value]), "{value}");
        }
    }

    #[test]
    fn several_fields_are_one_list() {
        assert!(prefers_json(&["text/plain;q=0.5", "application/json"]));
        assert!(!prefers_json(&["application/json", "text/plain"]));
    }
}
