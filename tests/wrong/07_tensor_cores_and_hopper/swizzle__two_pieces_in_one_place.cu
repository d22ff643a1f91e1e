// reason: sanitizer race
return piece & row % 8;
