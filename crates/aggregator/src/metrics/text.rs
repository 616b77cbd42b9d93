//! The text formats of the metrics: `OpenMetrics`, and the older one of Prometheus.

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// The text format of Prometheus, version 0.0.4.
    Prometheus,
}

impl Format {
    /// The one that a client asks for by its `Accept`.
    pub(crate) fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Its media type.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The metrics in this format, from `OpenMetrics`.
    pub(super) fn write(self, open: String) -> String {
        match self {
            Self::OpenMetrics => open,
            Self::Prometheus => prometheus(&open),
        }
    }
}

/// In the older format a counter has the name of its samples, which ends in `_total`. There are no units and no end mark.
fn prometheus(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let mut help: Option<(&str, &str)> = None;
    for line in open.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|typed| typed.split_once(' '))
        {
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take().filter(|(named, _)| *named == name) {
                text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_has_the_name_of_its_samples_in_the_older_format() {
        let open = "# HELP a Of a.\n# TYPE a counter\na_total{x=\"#\"} 1\n# HELP b Of b.\n# TYPE b gauge\n# UNIT b seconds\nb 2\n# EOF\n";
        let expected = "# HELP a_total Of a.\n# TYPE a_total counter\na_total{x=\"#\"} 1\n# HELP b Of b.\n# TYPE b gauge\nb 2\n";
        assert_eq!(Format::Prometheus.write(open.to_owned()), expected);
        assert_eq!(Format::OpenMetrics.write(open.to_owned()), open);
    }

    #[test]
    fn a_client_gets_the_format_that_it_asks_for() {
        let of_prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(Format::accepted(of_prometheus), Format::OpenMetrics);
        for accept in ["", "*/*", "text/plain"] {
            assert_eq!(Format::accepted(accept), Format::Prometheus);
        }
    }
}
