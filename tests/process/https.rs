//! The store on a SeaweedFS whose filer speaks https, with an authority of its own.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{cnse, text};
use crate::weed::Weed;

/// An authority and, signed by it, a certificate for loopback: PEM files in a folder.
struct Authority(std::path::PathBuf);

impl Authority {
    fn new() -> Authority {
        let folder = std::env::temp_dir().join(format!("cnse-https-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let authority = Authority(folder);
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let ca = ["-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key"];
        authority.openssl(&[&["req"], &key[..], &ca, &["-out", "ca.pem"]].concat());
        let name = ["-subj", "/CN=filer", "-addext", "subjectAltName=IP:127.0.0.1"];
        let request = ["-keyout", "filer.key", "-out", "filer.csr"];
        authority.openssl(&[&["req"], &key[..], &name, &request].concat());
        let sign = ["x509", "-req", "-in", "filer.csr", "-CA", "ca.pem", "-CAkey", "ca.key"];
        let out = ["-copy_extensions", "copy", "-days", "2", "-out", "filer.pem"];
        authority.openssl(&[&sign[..], &out].concat());
        // A filer asks for a certificate of its own authority; that one will do.
        let pem = |name| std::fs::read_to_string(authority.path(name)).unwrap();
        std::fs::write(authority.path("own.pem"), pem("filer.pem") + &pem("filer.key")).unwrap();
        authority
    }

    fn openssl(&self, args: &[&str]) {
        let mut command = Command::new("openssl");
        let output = command.args(args).current_dir(&self.0).stdin(Stdio::null()).output();
        let output = output.expect("openssl is installed (apt-get install openssl)");
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_model_goes_there_and_back_by_https() {
    let authority = Authority::new();
    let (certificate, key) = (authority.path("filer.pem"), authority.path("filer.key"));
    let ca = authority.path("ca.pem");
    let environment = [
        ("WEED_HTTPS_FILER_CERT", &*certificate),
        ("WEED_HTTPS_FILER_KEY", &*key),
        ("WEED_HTTPS_FILER_CA", &*ca),
    ];
    let Some(weed) = Weed::start(&[], &environment) else { return };
    assert!(weed.url.starts_with("https://"), "{}", weed.url);
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 253) as u8).collect();
    let model = authority.path("model.bin");
    std::fs::write(&model, &bytes).unwrap();
    let run = |args: &[&str], ca: Option<&str>| {
        let mut command = cnse();
        command.args(args).args(["--filer", &weed.url]).env("CNSE_CACHE", authority.path("cache"));
        command.env("CNSE_FILER_CERT", authority.path("own.pem"));
        if let Some(ca) = ca {
            command.env("CNSE_FILER_CA", authority.path(ca));
        }
        command.stdin(Stdio::null()).output().unwrap()
    };
    let put = ["put", &model, "--name", "m", "--tag", "q", "--part-size", "1MiB", "--quiet"];
    let stored = run(&put, Some("ca.pem"));
    assert!(stored.status.success(), "{}", text(&stored.stderr));
    let output = authority.path("out.bin");
    let got = run(&["get", "m:q", "--output", &output], Some("ca.pem"));
    assert!(got.status.success(), "{}", text(&got.stderr));
    assert!(std::fs::read(Path::new(&output)).unwrap() == bytes);
    let verified = run(&["verify", "--full", "--quiet"], Some("ca.pem"));
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    // Nobody has vouched for it, and a file that names no authority.
    let stranger = run(&["ls"], None);
    assert_eq!(stranger.status.code(), Some(1));
    let said = text(&stranger.stderr);
    assert!(said.contains(&weed.url) && said.contains("CNSE_FILER_CA"), "{said}");
    let mut nobody = cnse();
    nobody.args(["ls", "--filer", &weed.url]).env("CNSE_FILER_CA", &ca);
    let nobody = nobody.output().unwrap();
    assert!(text(&nobody.stderr).contains("CNSE_FILER_CERT"), "{}", text(&nobody.stderr));
    let none = run(&["ls"], Some("model.bin"));
    assert!(text(&none.stderr).contains("CNSE_FILER_CA"), "{}", text(&none.stderr));
}
