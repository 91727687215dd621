package buildctx

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "crypto/sha512" // checksums may be sha384 and sha512
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"iter"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"build/internal/git"
	"build/internal/tree"
)

// Downloads fetches files over http(s) and keeps them in a directory, so that what has not changed over there is not
// fetched again. Several processes may use the directory at once.
type Downloads struct {
	Dir       string
	Transport http.RoundTripper
	UserAgent string
	// Authorization returns the value of the Authorization header for a host, "" for none.
	Authorization func(host string) string
	Offline       bool          // open no socket: what is kept has to do
	Limit         int64         // bytes kept in the directory; 0 is defaultKeep
	Wait          time.Duration // before the first of the repetitions; 0 is a second
}

const (
	defaultKeep  = 4 << 30
	attempts     = 4
	stallTime    = time.Minute // without a byte
	maxRedirects = 10
)

// HTTPError says that a file could not be fetched.
type HTTPError struct {
	URL    string // without passwords
	Status int    // 0 when there was no answer
	Err    error
	Hint   string

	again bool // may work the next time
	after time.Duration
}

func (e *HTTPError) Error() string {
	s := fmt.Sprintf("fetch %s: %v", e.URL, e.Err)
	if e.Hint != "" {
		s += "\n  " + e.Hint
	}
	return s
}
func (e *HTTPError) Unwrap() error { return e.Err }

// ErrOffline is what is in the error when a socket would have been needed.
var ErrOffline = errors.New("not here, and no connection may be made")

// ChecksumError says that a file is not the expected one.
type ChecksumError struct {
	URL       string
	Got, Want digest.Digest
}

func (e *ChecksumError) Error() string {
	return fmt.Sprintf("digest mismatch for %s: %s (expected: %s)", e.URL, e.Got, e.Want)
}

// Download is a file that was fetched.
type Download struct {
	Path         string // in the directory of downloads
	Digest       [32]byte
	Size         int64
	Name         string // from Content-Disposition or the URL, safe as a file name
	LastModified *time.Time
	Stale        bool // nobody was asked whether it is still the same

	fresh bool
}

// kept is what is remembered of a URL. The URL itself is not: there may be a password in it.
type kept struct {
	ETag         string `json:"etag,omitempty"`
	LastModified string `json:"lastModified,omitempty"`
	Disposition  string `json:"disposition,omitempty"`
	Digest       string `json:"digest"`
	Size         int64  `json:"size"`

	fresh bool // fetched just now, so its content is known for certain
}

// Get fetches the file at a URL. When checksum is not empty it has to have that; if it is kept, nothing is asked then.
func (d *Downloads) Get(ctx context.Context, raw string, checksum digest.Digest) (*Download, error) {
	if err := os.MkdirAll(d.Dir, 0o700); err != nil {
		return nil, err
	}
	key := sha256.Sum256([]byte(raw))
	note := filepath.Join(d.Dir, "url-"+hex.EncodeToString(key[:]))
	have, known := d.known(note)
	if !known && checksum != "" && checksum.Algorithm() == digest.SHA256 {
		have, known = d.content(kept{Digest: checksum.Encoded()})
	}
	if known && checksum != "" {
		if dl, err := d.verify(raw, have, checksum); err == nil {
			return dl, nil
		}
	}
	if d.Offline {
		if !known || checksum != "" {
			return nil, &HTTPError{URL: git.Redact(raw), Err: ErrOffline, Hint: "fetch it once without --offline"}
		}
		dl := d.download(raw, have)
		dl.Stale = true
		return dl, nil
	}
	got, err := d.fetch(ctx, raw, have)
	if err != nil {
		return nil, err
	}
	if err := d.remember(note, got); err != nil {
		return nil, err
	}
	if checksum != "" {
		return d.verify(raw, got, checksum)
	}
	return d.download(raw, got), nil
}

func (d *Downloads) path(hex string) string { return filepath.Join(d.Dir, "sha256-"+hex) }

// known reads what is remembered of a URL, if the file is still here.
func (d *Downloads) known(note string) (kept, bool) {
	data, err := os.ReadFile(note)
	if err != nil {
		return kept{}, false
	}
	var k kept
	if json.Unmarshal(data, &k) != nil {
		return kept{}, false
	}
	return d.content(k)
}

// content looks for the file itself.
func (d *Downloads) content(k kept) (kept, bool) {
	if sum, err := hex.DecodeString(k.Digest); err != nil || len(sum) != sha256.Size {
		return kept{}, false
	}
	fi, err := os.Lstat(d.path(k.Digest))
	if err != nil || !fi.Mode().IsRegular() || k.Size != 0 && fi.Size() != k.Size {
		return kept{}, false
	}
	k.Size = fi.Size()
	return k, true
}

func (d *Downloads) download(raw string, k kept) *Download {
	dl := &Download{Path: d.path(k.Digest), Size: k.Size, Name: nameOf(raw, k.Disposition), fresh: k.fresh}
	_, _ = hex.Decode(dl.Digest[:], []byte(k.Digest)) // was checked
	if t, err := http.ParseTime(k.LastModified); err == nil {
		dl.LastModified = &t
	}
	now := time.Now()
	_ = os.Chtimes(dl.Path, now, now) // used: best effort, the oldest are removed first
	return dl
}

// verify compares a file with a checksum of any kind.
func (d *Downloads) verify(raw string, k kept, want digest.Digest) (*Download, error) {
	got := digest.NewDigestFromEncoded(digest.SHA256, k.Digest)
	if want.Algorithm() != digest.SHA256 {
		f, err := os.Open(d.path(k.Digest))
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if got, err = want.Algorithm().FromReader(f); err != nil {
			return nil, err
		}
	}
	if got != want {
		return nil, &ChecksumError{URL: git.Redact(raw), Got: got, Want: want}
	}
	return d.download(raw, k), nil
}

// nameOf is the name of a file: as the server calls it, or else as the URL does.
func nameOf(raw, disposition string) string {
	if _, params, err := mime.ParseMediaType(disposition); err == nil {
		if name := params["filename"]; name != "" && !strings.HasSuffix(name, "/") {
			return safeName(name)
		}
	}
	return URLFileName(raw)
}

// remember notes what a URL gave, and makes room.
func (d *Downloads) remember(note string, k kept) error {
	data, err := json.Marshal(k)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(d.Dir, "tmp-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), note)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return err
	}
	d.prune(k.Digest)
	return nil
}

// prune removes the files that were not used for longest until the rest fits, and what dead processes left.
func (d *Downloads) prune(keep string) {
	limit := d.Limit
	if limit == 0 {
		limit = defaultKeep
	}
	entries, err := os.ReadDir(d.Dir)
	if err != nil {
		return
	}
	var files []os.FileInfo
	var total int64
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			continue
		}
		if strings.HasPrefix(e.Name(), "tmp-") && time.Since(fi.ModTime()) > 24*time.Hour {
			_ = os.Remove(filepath.Join(d.Dir, e.Name()))
			continue
		}
		total += fi.Size()
		if e.Name() != "sha256-"+keep {
			files = append(files, fi)
		}
	}
	slices.SortFunc(files, func(a, b os.FileInfo) int { return a.ModTime().Compare(b.ModTime()) })
	for _, fi := range files {
		if total <= limit {
			return
		}
		if !strings.HasPrefix(fi.Name(), "tmp-") && os.Remove(filepath.Join(d.Dir, fi.Name())) == nil {
			total -= fi.Size()
		}
	}
}

// fetch asks for a file, several times if need be.
func (d *Downloads) fetch(ctx context.Context, raw string, have kept) (kept, error) {
	wait := d.Wait
	if wait == 0 {
		wait = time.Second
	}
	for try := 1; ; try++ {
		k, err := d.once(ctx, raw, have)
		var herr *HTTPError
		if cause := context.Cause(ctx); err != nil && cause != nil {
			return kept{}, cause
		}
		if err == nil || !errors.As(err, &herr) || !herr.again || try == attempts {
			return k, err
		}
		select {
		case <-ctx.Done():
			return kept{}, context.Cause(ctx)
		case <-time.After(max(wait, herr.after)):
		}
		wait *= 2
	}
}

func (d *Downloads) fail(raw string, again bool, err error) *HTTPError {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // the URL in it may have a password
	}
	return &HTTPError{URL: git.Redact(raw), Err: err, again: again}
}

func (d *Downloads) once(ctx context.Context, raw string, have kept) (kept, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(stallTime, func() { cancel(fmt.Errorf("nothing came for %s", stallTime)) })
	defer stalled.Stop()
	req, err := d.request(ctx, raw, have)
	if err != nil {
		return kept{}, d.fail(raw, false, err)
	}
	client := &http.Client{Transport: d.Transport, CheckRedirect: d.redirect}
	resp, err := client.Do(req)
	if err != nil {
		var untrusted *tls.CertificateVerificationError
		e := d.fail(raw, !errors.As(err, &untrusted) && !errors.Is(err, errBadRedirect), err)
		if untrusted != nil {
			e.Hint = "trust its CA with certs.d/" + req.URL.Host + "/ca.crt or SSL_CERT_FILE, or the host with --insecure " + req.URL.Host
		}
		return kept{}, e
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNotModified && have.Digest != "" {
		return have, nil
	}
	if resp.StatusCode < 200 || resp.StatusCode >= 300 {
		return kept{}, d.statusError(raw, resp)
	}
	k, err := d.save(&stallReader{resp.Body, stalled})
	if err != nil {
		return kept{}, d.fail(raw, !isLocal(err), err)
	}
	k.ETag, k.LastModified, k.Disposition = resp.Header.Get("ETag"), resp.Header.Get("Last-Modified"), resp.Header.Get("Content-Disposition")
	return k, nil
}

func (d *Downloads) request(ctx context.Context, raw string, have kept) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, raw, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", d.UserAgent)
	if d.Authorization != nil {
		if v := d.Authorization(req.URL.Hostname()); v != "" {
			req.Header.Set("Authorization", v)
		}
	}
	switch {
	case have.ETag != "":
		req.Header.Set("If-None-Match", have.ETag)
	case have.LastModified != "":
		req.Header.Set("If-Modified-Since", have.LastModified)
	}
	return req, nil
}

func (d *Downloads) redirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return errors.New("too many redirections")
	}
	if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return fmt.Errorf("%w: to %s:", errBadRedirect, req.URL.Scheme)
	}
	// net/http sends no credentials to another host, but does to another port of it, to its subdomains, and without encryption.
	if !sameOrigin(via[0].URL, req.URL) {
		req.Header.Del("Authorization")
	}
	return nil
}

var errBadRedirect = errors.New("redirected to a place that is not on the web")

// sameOrigin reports whether what may be told to a may be told to b: the same scheme, host and port, or the encrypted form of
// the same host at the ports these schemes have.
func sameOrigin(a, b *url.URL) bool {
	upgraded := a.Scheme == "http" && a.Port() == "" && b.Scheme == "https" && b.Port() == ""
	return a.Hostname() == b.Hostname() && (upgraded || a.Scheme == b.Scheme && a.Port() == b.Port())
}

func (d *Downloads) statusError(raw string, resp *http.Response) error {
	e := d.fail(raw, false, fmt.Errorf("invalid response status %d", resp.StatusCode))
	e.Status = resp.StatusCode
	switch code := resp.StatusCode; {
	case code == http.StatusTooManyRequests || code >= 500 && code != http.StatusNotImplemented:
		e.again = true
		if sec, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && sec > 0 {
			e.after = min(time.Duration(sec)*time.Second, stallTime)
		}
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		e.Hint = "give a token with --secret id=HTTP_AUTH_TOKEN_" + resp.Request.URL.Hostname() + ",env=NAME"
	}
	return e
}

// stallReader tells the watch that something came.
type stallReader struct {
	r     io.Reader
	watch *time.Timer
}

func (s *stallReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if n > 0 {
		s.watch.Reset(stallTime)
	}
	return n, err
}

// localError is a failure of this machine, which no repetition mends.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

func isLocal(err error) bool {
	var l localError
	return errors.As(err, &l)
}

// localWriter marks the errors of a writer as those of this machine.
type localWriter struct{ w io.Writer }

func (l localWriter) Write(p []byte) (int, error) {
	n, err := l.w.Write(p)
	if err != nil {
		err = localError{err}
	}
	return n, err
}

// save writes a body to the directory, under the name its content has.
func (d *Downloads) save(body io.Reader) (k kept, err error) {
	tmp, err := os.CreateTemp(d.Dir, "tmp-")
	if err != nil {
		return kept{}, localError{err}
	}
	defer os.Remove(tmp.Name())
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(localWriter{tmp}, h), body)
	if cerr := tmp.Close(); err == nil && cerr != nil {
		err = localError{cerr}
	}
	if err != nil {
		return kept{}, err
	}
	k = kept{Digest: hexSum(h), Size: n, fresh: true}
	if err := os.Rename(tmp.Name(), d.path(k.Digest)); err != nil {
		return kept{}, localError{err}
	}
	return k, nil
}

func hexSum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)) }

// File is a single file as a source of copies.
type File struct {
	f     *os.File
	entry tree.Entry
}

// fileMode is the mode of files that were fetched.
const fileMode = 0o600

// Open opens what was fetched as a tree of one file. It stays readable when others make room in the directory. A file of an
// earlier build is read once before it is believed: one that is damaged is removed, and the error is a *ChangedError.
func (dl *Download) Open(name string) (*File, error) {
	f, err := os.Open(dl.Path)
	if err != nil {
		return nil, err
	}
	if !dl.fresh {
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			f.Close()
			return nil, err
		}
		if !bytes.Equal(h.Sum(nil), dl.Digest[:]) {
			f.Close()
			if err := os.Remove(dl.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			return nil, &ChangedError{Path: dl.Path}
		}
	}
	e := tree.Entry{Path: name, Type: tree.File, Mode: fileMode, Size: dl.Size, ModTime: time.Unix(0, 0), Digest: dl.Digest, Offset: -1}
	if dl.LastModified != nil {
		e.ModTime = *dl.LastModified
	}
	return &File{f, e}, nil
}

// Close ends it.
func (f *File) Close() error { return f.f.Close() }

// Reader returns the content.
func (f *File) Reader() io.Reader { return io.NewSectionReader(f.f, 0, f.entry.Size) }

func (f *File) top() tree.Entry {
	return tree.Entry{Type: tree.Dir, Mode: 0o755, ModTime: f.entry.ModTime, Offset: -1}
}

// Lstat returns the directory or the file.
func (f *File) Lstat(path string) (tree.Entry, bool, error) {
	switch path {
	case "":
		return f.top(), true, nil
	case f.entry.Path:
		return f.entry, true, nil
	}
	return tree.Entry{}, false, nil
}

// ReadDir lists the directory.
func (f *File) ReadDir(path string) ([]tree.Entry, error) {
	if path != "" {
		return nil, nil
	}
	return []tree.Entry{f.entry}, nil
}

// Walk yields the directory and the file, or the file.
func (f *File) Walk(path string) iter.Seq2[tree.Entry, error] {
	return func(yield func(tree.Entry, error) bool) {
		if path == "" && !yield(f.top(), nil) {
			return
		}
		if path == "" || path == f.entry.Path {
			yield(f.entry, nil)
		}
	}
}

// Digest returns the SHA-256 of the file.
func (f *File) Digest(context.Context, *tree.Entry) ([32]byte, error) { return f.entry.Digest, nil }

// Open opens the file.
func (f *File) Open(context.Context, *tree.Entry) (io.ReadCloser, error) {
	return io.NopCloser(f.Reader()), nil
}
