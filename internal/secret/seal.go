package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
)

// Seal encrypts a value so that only Open with the same purpose and subject
// gets it back: what is sealed for one subject cannot be put in the place of
// what belongs to another. Each call gives other bytes.
func (m Master) Seal(purpose, subject string, value []byte) ([]byte, error) {
	aead, err := m.aead(purpose)
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", purpose, err)
	}
	return aead.Seal(nil, nil, value, []byte(subject)), nil
}

// Open returns what was sealed. Any other bytes, another purpose, subject or
// master key are an error.
func (m Master) Open(purpose, subject string, sealed []byte) ([]byte, error) {
	aead, err := m.aead(purpose)
	if err != nil {
		return nil, fmt.Errorf("open sealed %s: %w", purpose, err)
	}
	value, err := aead.Open(nil, nil, sealed, []byte(subject))
	if err != nil {
		return nil, fmt.Errorf("open sealed %s: it was changed, or sealed with another master key", purpose)
	}
	return value, nil
}

// aead has a key of its own for each purpose, unrelated to all tokens. Nonces
// are random, 96 bits: enough for four billion values of one purpose.
func (m Master) aead(purpose string) (cipher.AEAD, error) {
	if m.Empty() {
		return nil, errors.New("there is no master key")
	}
	key, err := hkdf.Key(sha256.New, []byte(m.key.Reveal()), nil, "moat seal "+purpose, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}
