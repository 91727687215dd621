package cache

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"build/internal/store"
)

// Cache is the part of a store that remembers what steps gave. It is safe for concurrent use, by any number of processes.
type Cache struct {
	st *store.Store
}

// New returns the cache in a store.
func New(st *store.Store) *Cache { return &Cache{st: st} }

// Miss is the reason why there is no usable record.
type Miss struct {
	Key    Key
	Reason string
	Err    error // what the reason comes from, if anything
}

func (m *Miss) Error() string { return "cache miss: " + m.Reason }

func (m *Miss) Unwrap() error { return m.Err }

// Reasons of a miss. One that begins otherwise comes from damage, and says which.
const (
	ReasonAbsent  = "no record"
	ReasonDamaged = "the record is damaged"
)

// Get returns the record under a key. The error is always a *Miss. Whether the layers can be had is another question.
func (c *Cache) Get(k Key) (*Record, error) {
	data, err := c.st.Read(store.KindRecord, k.String())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Miss{Key: k, Reason: ReasonAbsent}
	}
	if err != nil {
		return nil, &Miss{Key: k, Reason: ReasonDamaged + ": " + err.Error(), Err: err}
	}
	got, r, err := decode(data)
	if err == nil && got != k {
		err = fmt.Errorf("it is the one of key %s", got)
	}
	if err != nil {
		return nil, &Miss{Key: k, Reason: ReasonDamaged + ": " + err.Error(), Err: err}
	}
	return r, nil
}

// Put records what a step gave, in place of what was known under the key. The layers it names must be published.
func (c *Cache) Put(k Key, r *Record) error {
	own := *r
	var err error
	if own.Text, err = c.shareText(r.Text); err != nil {
		return fmt.Errorf("record %s: %w", k, err)
	}
	data, err := own.encode(k)
	if err != nil {
		return fmt.Errorf("record %s: %w", k, err)
	}
	return c.st.Write(store.KindRecord, k.String(), data)
}

// Alias lets a definition's key answer with what was found or made under the key of a content. text is what the
// definition's key was hashed from.
func (c *Cache) Alias(def Key, r *Record, text []byte) error {
	own := *r
	own.Text = text
	return c.Put(def, &own)
}

// Remove forgets a record, for instance one whose layers are gone.
func (c *Cache) Remove(k Key) error { return c.st.Remove(store.KindRecord, k.String()) }

// remembered is how many keys of an instruction are kept.
const remembered = 4

func linkKey(identity string) string { return "step " + identity }

// Remember notes the key that the instruction of that identity has now. Identity is whatever stays the same while
// everything else about an instruction changes, its place in the file for instance.
func (c *Cache) Remember(identity string, k Key) error {
	keys := c.rememberedKeys(identity)
	if len(keys) > 0 && keys[0] == k {
		return nil
	}
	keys = slices.DeleteFunc(keys, func(o Key) bool { return o == k })
	keys = append([]Key{k}, keys...)
	var b strings.Builder
	for _, o := range keys[:min(len(keys), remembered)] {
		b.WriteString(o.String() + "\n")
	}
	return c.st.Write(store.KindLink, linkKey(identity), []byte(b.String()))
}

// rememberedKeys returns the latest first. What cannot be read was not remembered.
func (c *Cache) rememberedKeys(identity string) []Key {
	data, err := c.st.Read(store.KindLink, linkKey(identity))
	if err != nil {
		return nil
	}
	var keys []Key
	for line := range strings.Lines(string(data)) {
		k, err := ParseKey(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil
		}
		keys = append(keys, k)
	}
	return keys
}

// Alike returns the records that are remembered of an instruction, the latest first, with their whole texts.
func (c *Cache) Alike(identity string) []*Record {
	var out []*Record
	for _, k := range c.rememberedKeys(identity) {
		if r, err := c.Get(k); err == nil {
			r.Text = c.Text(r)
			out = append(out, r)
		}
	}
	return out
}

// References tells a collection or a check of the store what records and links stand on.
func References(kind store.Kind, _ string, data []byte) []store.Ref {
	switch kind {
	case store.KindRecord:
		_, r, err := decode(data)
		if err != nil {
			return nil
		}
		var refs []store.Ref
		for _, d := range r.Layers {
			refs = append(refs, store.Ref{Kind: store.KindLayer, Key: string(d)})
		}
		for _, key := range sharedTexts(r.Text) {
			refs = append(refs, store.Ref{Kind: store.KindText, Key: key, Weak: true})
		}
		return refs
	}
	return nil
}

// StepOf says of which step bytes are the record, and which layers are its own, for people who look at the store.
func StepOf(data []byte) (step string, own []digest.Digest) {
	_, r, err := decode(data)
	if err != nil {
		return "", nil
	}
	return r.Step, r.Layers[len(r.Layers)-r.Own:]
}

// CheckRecord reports what is wrong with the bytes of a record, for a check of the store.
func CheckRecord(key string, data []byte) error {
	k, _, err := decode(data)
	if err == nil && k.String() != key {
		err = fmt.Errorf("it is the one of key %s", k)
	}
	return err
}
