# reason: exception OpCheckError
return gate * up
