//! The documentation pages of the REST API: Swagger UI and ReDoc over its OpenAPI document, from files inside the binary.
//!
//! The pages refer to everything by addresses relative to their own, so they also work behind a proxy that puts a path
//! prefix in front.

use std::io::{self, Read};
use std::sync::OnceLock;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use data_encoding::HEXLOWER;
use flate2::read::GzDecoder;
use http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};

/// Where the pages are: at the root and below `/api`.
const ROOTS: [&str; 2] = ["", "/api"];

const SWAGGER_PAGE: &str = include_str!("../../assets/docs/swagger.html");
const REDOC_PAGE: &str = include_str!("../../assets/docs/redoc.html");

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// What the pages may load and do. The hash is that of their inline script; both viewers set styles from their scripts,
/// Swagger UI's icons are `data:` addresses, and ReDoc searches in a worker it makes from its own text.
const PAGE_POLICY: &str = "default-src 'none'; \
    script-src 'self' 'sha256-iK2XELp1/2CBgvZkgz+W+rl1WXzft8xRR1dWR90EmVo='; \
    style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; worker-src blob:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

static ASSETS: [Asset; 9] = [
    Asset::new("init.js", SCRIPT, Stored::Plain(include_bytes!("../../assets/docs/init.js"))),
    Asset::new("swagger-ui.css", STYLE, Stored::Gzip(include_bytes!("../../assets/docs/swagger-ui.css.gz"))),
    Asset::new(
        "swagger-ui-bundle.js",
        SCRIPT,
        Stored::Gzip(include_bytes!("../../assets/docs/swagger-ui-bundle.js.gz")),
    ),
    Asset::new(
        "swagger-ui-bundle.js.LICENSE.txt",
        TEXT,
        Stored::Gzip(include_bytes!("../../assets/docs/swagger-ui-bundle.js.LICENSE.txt.gz")),
    ),
    Asset::new(
        "swagger-ui.LICENSE.txt",
        TEXT,
        Stored::Gzip(include_bytes!("../../assets/docs/swagger-ui.LICENSE.txt.gz")),
    ),
    Asset::new(
        "swagger-ui.NOTICE.txt",
        TEXT,
        Stored::Gzip(include_bytes!("../../assets/docs/swagger-ui.NOTICE.txt.gz")),
    ),
    Asset::new("redoc.standalone.js", SCRIPT, Stored::Gzip(include_bytes!("../../assets/docs/redoc.standalone.js.gz"))),
    Asset::new(
        "redoc.standalone.js.LICENSE.txt",
        TEXT,
        Stored::Gzip(include_bytes!("../../assets/docs/redoc.standalone.js.LICENSE.txt.gz")),
    ),
    Asset::new("redoc.LICENSE.txt", TEXT, Stored::Gzip(include_bytes!("../../assets/docs/redoc.LICENSE.txt.gz"))),
];

/// The routes of the documentation pages: `/openapi.json` with `document` as it is given, the Swagger UI at `/docs`,
/// ReDoc at `/redoc` and their files below `/docs/assets`; all of them below `/api` too.
pub fn router<S: Clone + Send + Sync + 'static>(document: Bytes) -> Router<S> {
    ROOTS.into_iter().fold(Router::new(), |router, root| add_pages(router, root, &document))
}

fn add_pages<S: Clone + Send + Sync + 'static>(router: Router<S>, root: &str, document: &Bytes) -> Router<S> {
    let document = document.clone();
    let router = router
        .route(&format!("{root}/openapi.json"), get(async move || specification(document)))
        .route(&format!("{root}/docs"), get(async || page(SWAGGER_PAGE)))
        .route(&format!("{root}/redoc"), get(async || page(REDOC_PAGE)));
    ASSETS.iter().fold(router, |router, asset| {
        let answer = async move |request: HeaderMap| asset.answer(&request);
        router.route(&format!("{root}/docs/assets/{}", asset.name), get(answer))
    })
}

fn specification(document: Bytes) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, document).into_response()
}

fn page(html: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HTML),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, html).into_response()
}

/// How a file lies in the binary.
enum Stored {
    Plain(&'static [u8]),
    Gzip(&'static [u8]),
}

/// A file that the pages load.
struct Asset {
    name: &'static str,
    media_type: &'static str,
    stored: Stored,
    tag: OnceLock<String>,
    unpacked: OnceLock<Bytes>,
}

impl Asset {
    const fn new(name: &'static str, media_type: &'static str, stored: Stored) -> Asset {
        Asset { name, media_type, stored, tag: OnceLock::new(), unpacked: OnceLock::new() }
    }

    fn answer(&self, request: &HeaderMap) -> Response {
        let headers = [
            (header::CACHE_CONTROL, "public, max-age=86400"),
            (header::ETAG, self.tag()),
            (header::VARY, "accept-encoding"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        if has_current(request, self.tag()) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        let media_type = [(header::CONTENT_TYPE, self.media_type)];
        match self.stored {
            Stored::Gzip(bytes) if accepts_gzip(request) => {
                (headers, media_type, [(header::CONTENT_ENCODING, "gzip")], Bytes::from_static(bytes)).into_response()
            }
            _ => match self.plain() {
                Ok(bytes) => (headers, media_type, bytes).into_response(),
                Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
            },
        }
    }

    /// The entity tag. A weak one, as it names the file in both its encodings.
    fn tag(&self) -> &str {
        self.tag.get_or_init(|| {
            let (Stored::Plain(bytes) | Stored::Gzip(bytes)) = self.stored;
            format!("W/\"{}\"", HEXLOWER.encode(&Sha256::digest(bytes)[..16]))
        })
    }

    /// The file uncompressed, unpacked once for all the clients that do not take gzip.
    fn plain(&self) -> io::Result<Bytes> {
        let packed = match self.stored {
            Stored::Plain(bytes) => return Ok(Bytes::from_static(bytes)),
            Stored::Gzip(bytes) => bytes,
        };
        if let Some(bytes) = self.unpacked.get() {
            return Ok(bytes.clone());
        }
        let mut bytes = Vec::new();
        GzDecoder::new(packed).read_to_end(&mut bytes)?;
        Ok(self.unpacked.get_or_init(|| bytes.into()).clone())
    }
}

/// The elements of a header that is a list, over all its lines.
fn list(request: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    let lines = request.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

fn has_current(request: &HeaderMap, tag: &str) -> bool {
    let opaque = |tag| str::strip_prefix(tag, "W/").unwrap_or(tag).to_owned();
    list(request, header::IF_NONE_MATCH).any(|known| known == "*" || opaque(known) == opaque(tag))
}

/// Whether the client takes gzip. One that says nothing of encodings gets none, and what it says of gzip by name counts
/// before what it says of all encodings.
fn accepts_gzip(request: &HeaderMap) -> bool {
    let accepted = |coding: &str| {
        list(request, header::ACCEPT_ENCODING).find_map(|element| {
            let (name, parameters) = element.split_once(';').unwrap_or((element, ""));
            name.trim_end().eq_ignore_ascii_case(coding).then(|| !is_refused(parameters))
        })
    };
    accepted("gzip").or_else(|| accepted("*")).unwrap_or(false)
}

/// Whether the parameters of an accepted encoding give it the weight zero, which rules it out.
fn is_refused(parameters: &str) -> bool {
    let weight = parameters.trim().strip_prefix(['q', 'Q']).and_then(|rest| rest.trim_start().strip_prefix('='));
    weight.is_some_and(|weight| weight.trim().parse() == Ok(0.0_f32))
}

#[cfg(test)]
mod tests {
    use axum::body::{Body, to_bytes};
    use data_encoding::BASE64;
    use http::{HeaderName, Method, Request};
    use tower::ServiceExt;

    use super::*;

    const PAGES: [&str; 2] = ["/docs", "/redoc"];
    const DOCUMENT: &str = r#"{"openapi":"3.1.0"}"#;

    struct Answer {
        status: StatusCode,
        headers: HeaderMap,
        body: Bytes,
    }

    impl Answer {
        fn header(&self, name: HeaderName) -> &str {
            self.headers.get(name).map_or("", |value| value.to_str().unwrap())
        }

        fn text(&self) -> &str {
            str::from_utf8(&self.body).unwrap()
        }
    }

    async fn ask(method: Method, path: &str, headers: &[(HeaderName, &str)]) -> Answer {
        let mut request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        for (name, value) in headers {
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let router: Router = router(Bytes::from_static(DOCUMENT.as_bytes()));
        let (parts, body) = router.oneshot(request).await.unwrap().into_parts();
        Answer { status: parts.status, headers: parts.headers, body: to_bytes(body, usize::MAX).await.unwrap() }
    }

    async fn look(path: &str) -> Answer {
        ask(Method::GET, path, &[]).await
    }

    /// The texts that stand between `start` and the next `end`.
    fn between<'a>(text: &'a str, start: &str, end: &str) -> Vec<&'a str> {
        text.split(start).skip(1).filter_map(|rest| rest.split_once(end)).map(|(found, _)| found).collect()
    }

    fn references(html: &str) -> Vec<&str> {
        [between(html, "src=\"", "\""), between(html, "href=\"", "\"")].concat()
    }

    #[tokio::test]
    async fn the_document_is_served_as_it_is_given() {
        for root in ROOTS {
            let answer = look(&format!("{root}/openapi.json")).await;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.header(header::CONTENT_TYPE), "application/json");
            assert_eq!(answer.text(), DOCUMENT);
        }
    }

    #[tokio::test]
    async fn the_pages_refer_to_what_is_served_and_to_nothing_else() {
        for root in ROOTS {
            for path in PAGES {
                let answer = look(&format!("{root}{path}")).await;
                assert_eq!(answer.status, StatusCode::OK);
                assert_eq!(answer.header(header::CONTENT_TYPE), HTML);
                assert_eq!(answer.header(header::CONTENT_SECURITY_POLICY), PAGE_POLICY);
                assert_eq!(answer.header(header::X_CONTENT_TYPE_OPTIONS), "nosniff");
                assert!(!answer.text().contains("http://") && !answer.text().contains("https://"), "{path}");

                let references: Vec<_> = references(answer.text()).into_iter().filter(|to| *to != "data:,").collect();
                assert!(references.contains(&"docs/assets/init.js"), "{references:?}");
                for to in references {
                    assert!(!to.starts_with('/'), "{to} would miss a prefix");
                    assert_eq!(look(&format!("{root}/{to}")).await.status, StatusCode::OK, "{to} of {root}{path}");
                }
            }
        }
    }

    #[tokio::test]
    async fn the_policy_lets_the_inline_scripts_run() {
        for path in PAGES {
            let answer = look(path).await;
            let scripts = between(answer.text(), "<script>", "</script>");
            assert_eq!(scripts.len(), 1, "{path}");
            let allowed = format!("'sha256-{}'", BASE64.encode(&Sha256::digest(scripts[0])));
            assert!(PAGE_POLICY.contains(&allowed), "{path}: {allowed}");
        }
    }

    #[tokio::test]
    async fn an_asset_is_plain_unless_the_client_takes_gzip() {
        for asset in &ASSETS {
            let path = format!("/docs/assets/{}", asset.name);
            let plain = look(&path).await;
            assert_eq!(plain.status, StatusCode::OK);
            assert_eq!(plain.header(header::CONTENT_TYPE), asset.media_type);
            assert_eq!(plain.header(header::CONTENT_ENCODING), "");

            let packed = ask(Method::GET, &path, &[(header::ACCEPT_ENCODING, "br, gzip;q=0.5")]).await;
            assert_eq!(packed.header(header::VARY), "accept-encoding");
            assert_eq!(packed.header(header::CACHE_CONTROL), "public, max-age=86400");
            assert_eq!(packed.header(header::ETAG), plain.header(header::ETAG));
            let mut unpacked = Vec::new();
            match asset.stored {
                Stored::Plain(bytes) => unpacked.extend(bytes),
                Stored::Gzip(_) => {
                    assert_eq!(packed.header(header::CONTENT_ENCODING), "gzip");
                    GzDecoder::new(&*packed.body).read_to_end(&mut unpacked).unwrap();
                }
            }
            assert!(plain.body == unpacked, "{path}");
        }
    }

    #[tokio::test]
    async fn a_head_request_tells_the_length_alone() {
        let answer = ask(Method::HEAD, "/docs/assets/init.js", &[]).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(answer.header(header::CONTENT_LENGTH).parse::<usize>().unwrap() > 0);
        assert!(answer.body.is_empty());
    }

    #[tokio::test]
    async fn a_client_that_has_the_asset_does_not_get_it_again() {
        let path = "/docs/assets/swagger-ui.css";
        let tag = look(path).await.header(header::ETAG).to_owned();
        for (known, status) in [
            (tag.clone(), StatusCode::NOT_MODIFIED),
            (format!("\"other\", {}", tag.trim_start_matches("W/")), StatusCode::NOT_MODIFIED),
            ("\"other\"".to_owned(), StatusCode::OK),
        ] {
            let answer = ask(Method::GET, path, &[(header::IF_NONE_MATCH, &known)]).await;
            assert_eq!(answer.status, status, "{known}");
            assert_eq!(answer.header(header::ETAG), tag);
            assert_eq!(answer.body.is_empty(), status == StatusCode::NOT_MODIFIED);
        }
    }

    #[tokio::test]
    async fn an_asset_that_is_not_there_is_not_found() {
        for path in ["/docs/assets/none.js", "/docs/assets/", "/docs/assets/..%2finit.js"] {
            assert_eq!(look(path).await.status, StatusCode::NOT_FOUND, "{path}");
        }
    }

    #[test]
    fn gzip_is_taken_where_the_client_allows_it() {
        let takes = |lines: &[&str]| {
            let lines = lines.iter().map(|line| (header::ACCEPT_ENCODING, line.parse().unwrap()));
            accepts_gzip(&lines.collect())
        };
        for yes in ["gzip", "GZIP", "deflate, gzip;q=0.1", "gzip ; q = 1.0", "*", "br;q=1.0, *;q=0.2"] {
            assert!(takes(&[yes]), "{yes}");
        }
        for no in ["", "identity", "br, zstd", "gzip;q=0", "gzip; Q=0.000, *", "*;q=0", "gzipped"] {
            assert!(!takes(&[no]), "{no}");
        }
        assert!(!takes(&[]));
    }

    #[test]
    fn every_line_of_a_list_counts() {
        let mut request = HeaderMap::new();
        for line in ["br", "gzip"] {
            request.append(header::ACCEPT_ENCODING, line.parse().unwrap());
        }
        assert!(accepts_gzip(&request));
    }

    #[test]
    fn the_list_of_files_gives_their_hashes() {
        let listed = include_str!("../../assets/docs/README.md");
        for asset in ASSETS.iter().filter(|asset| matches!(asset.stored, Stored::Gzip(_))) {
            let row = listed.lines().find(|line| line.starts_with(&format!("| `{}.gz` |", asset.name)));
            let hash = HEXLOWER.encode(&Sha256::digest(asset.plain().unwrap()));
            assert!(row.is_some_and(|row| row.ends_with(&format!("| `{hash}` |"))), "{}: {hash}", asset.name);
        }
    }
}
