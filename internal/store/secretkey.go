package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// secretKeyFile holds random bytes of this store alone. They are in no layout, no archive and no cache that is given away:
// who has a digest made with them learns nothing about what was digested, not even by guessing.
const secretKeyFile = "secret-key"

const secretKeySize = 32

// SecretKey returns the store's own random key, made when it is first asked for: what has to be compared from build to
// build but must not be known, such as the value of a secret, is remembered as an HMAC under it. A key that was lost or damaged
// is replaced, and what was remembered under it compares unequal.
func (s *Store) SecretKey() ([]byte, error) {
	for range 3 {
		key, err := os.ReadFile(s.path(secretKeyFile))
		switch {
		case err == nil && len(key) == secretKeySize:
			return key, nil
		case err == nil: // of a loss of power, or somebody's hand
			err = os.Remove(s.path(secretKeyFile))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("the store's secret key: %w", err)
		}
		key = make([]byte, secretKeySize)
		_, _ = rand.Read(key) // never fails
		if err := s.createFile(secretKeyFile, string(key)); err != nil {
			return nil, fmt.Errorf("make the store's secret key: %w", err)
		}
	}
	return nil, fmt.Errorf("the store's secret key is damaged as soon as it is made: remove %s", s.path(secretKeyFile))
}
